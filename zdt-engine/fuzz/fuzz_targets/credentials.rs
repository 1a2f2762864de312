//! Any bytes in the sealed memory that brings a worker its certificates and ticket keys: refused, or credentials of
//! which a server can be made, or an error that says what is wrong.
//!
//! Must not know: valid certificates.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::config::{CertificateFiles, TlsOptions};
use zdt_engine::credentials::Credentials;
use zdt_engine::proto::tls::Tickets;
use zdt_engine::shm::sealed_copy;

fuzz_target!(|data: &[u8]| {
    let [control, bytes @ ..] = data else { return };
    // The front that every sound one has, so that what is behind it is met, too.
    let sound = [&b"ZTC1"[..], bytes].concat();
    let bytes = if control & 1 == 0 { bytes } else { &sound };
    let memory = sealed_copy("fuzz", &[bytes]).expect("memory");
    let Ok(credentials) = Credentials::receive(&memory) else { return };
    let files = CertificateFiles { certificate: "a".into(), key: "b".into() };
    let options = TlsOptions { certificates: vec![files], ..TlsOptions::default() };
    let options = options.for_worker().expect("there is a certificate");
    if let Err(error) = credentials.server(&options, control & 2 != 0, &Tickets::default()) {
        assert!(!error.is_empty());
    }
});
