//! Whatever a server sends, from any saved state on: events that fit together, or an error; and every
//! state on the way can be saved and restored.
//!
//! Must not know: who reads the response.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::Input;
use zdt_engine::proto::http1::client::{ClientEvent, ClientHead, ClientLimits, Http1Client};

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_at_checked(size_of::<ClientHead>()) else { return };
    let head: ClientHead = bytemuck::pod_read_unaligned(head);
    let mut client = match Http1Client::restore(&head) {
        Ok(client) => client,
        Err(_) => {
            let mut client = Http1Client::new();
            client.begin(data[0] & 1 != 0, data[0] & 2 != 0);
            client
        }
    };
    let mut bytes = rest.to_vec();
    let mut input = Input::new(&mut bytes);
    loop {
        client = Http1Client::restore(&client.save()).expect("a state of its own");
        match client.next_event(&mut input, &ClientLimits::default()) {
            Ok(Some(ClientEvent::Body(bytes))) => assert!(!bytes.is_empty()),
            Ok(Some(ClientEvent::Response(response) | ClientEvent::Interim(response))) => {
                assert!((100..1_000).contains(&response.status));
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(_) => {
                let end = client.next_event(&mut input, &ClientLimits::default());
                assert!(matches!(end, Ok(None)), "an error is the end");
                return;
            }
        }
    }
    let _ = client.on_receive_end(false);
});
