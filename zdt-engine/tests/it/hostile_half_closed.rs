//! Clients that end their direction at awkward moments.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::lab::{Pair, TestWorker, client, eventually};

/// Much less than the stall time-out, after which anything would end.
const SOON: Duration = Duration::from_secs(10);

/// The session waits for a send that may end, in full, in the very moment of the freeze: green has
/// nothing to send then whose end would give the session its turn.
#[test]
fn downloads_of_half_closed_clients_go_on() {
    const TOTAL: usize = 16 << 20;
    let mut blue = TestWorker::spawn(1);
    let address = blue.listen();
    let readers: Vec<_> = (0..48)
        .map(|_| {
            let mut stream = client::connect(address);
            let request = format!("GET /big?n={TOTAL} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("write");
            stream.shutdown(Shutdown::Write).expect("FIN");
            stream.set_read_timeout(Some(SOON)).expect("read timeout");
            std::thread::spawn(move || {
                let (mut total, mut chunk) = (0, vec![0; 256 << 10]);
                loop {
                    match stream.read(&mut chunk) {
                        Ok(0) => return total,
                        Ok(count) => total += count,
                        Err(error) => panic!("after {total} bytes: {error}"),
                    }
                }
            })
        })
        .collect();
    eventually("all are answered", || blue.status().requests == 48);
    let mut worker = blue;
    let mut moved = 0;
    for generation in 2..8 {
        let mut pair = Pair::join(worker, TestWorker::spawn(generation));
        moved += pair.hand_off().moved;
        worker = pair.green;
    }
    assert!(moved > 0);
    for reader in readers {
        assert!(reader.join().expect("a download came to its end") > TOTAL);
    }
}
