//! Scripts that clients play on connections which move to another process at random places, again and again.
//! What they hear must be what they hear on a connection that stays.

use std::fmt::Debug;
use std::io::Write;
use std::net::TcpStream;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::worker::Options;
use super::{Pair, TestWorker, client, eventually};

const MOVES: usize = 3;

/// From `ZDT_TEST_SEED`, or by chance; says which.
pub fn seed() -> u64 {
    let seed = std::env::var("ZDT_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("ZDT_TEST_SEED={seed}");
    seed
}

struct Player<'a, Script, Heard> {
    script: &'a Script,
    expected: &'a Heard,
    places: Vec<usize>,
    written: usize,
    stream: TcpStream,
}

/// Plays each script on that many connections of workers with these options. `hear` reads, to its end, what is
/// said to a script, in a form that does not depend on time.
#[track_caller]
pub fn play<Script: AsRef<[u8]>, Heard: PartialEq + Debug>(
    options: &Options<'_>,
    seed: u64,
    scripts: &[Script],
    connections_per_script: usize,
    hear: impl Fn(&Script, TcpStream) -> Heard,
) {
    let mut worker = TestWorker::spawn_with(1, options);
    let address = worker.listen();
    let unmoved = |script: &Script| {
        let mut stream = client::connect(address);
        stream.write_all(script.as_ref()).expect("write");
        hear(script, stream)
    };
    let expected: Vec<Heard> = scripts.iter().map(unmoved).collect();
    eventually("the first clients are gone", || worker.status().connections == 0);

    let mut random = StdRng::seed_from_u64(seed);
    let mut players = Vec::new();
    for (script, expected) in scripts.iter().zip(&expected) {
        for _ in 0..connections_per_script {
            let mut place = || random.random_range(0..=script.as_ref().len());
            let mut places: Vec<usize> = (0..MOVES).map(|_| place()).collect();
            places.sort_unstable();
            let stream = client::connect(address);
            players.push(Player { script, expected, places, written: 0, stream });
        }
    }
    for turn in 0..MOVES {
        let before = worker.status().bytes_received;
        let mut sent = 0;
        for Player { script, places, written, stream, .. } in &mut players {
            let part = &script.as_ref()[*written..places[turn]];
            stream.write_all(part).expect("write");
            sent += part.len() as u64;
            *written = places[turn];
        }
        // Those that have said all may be gone.
        eventually("the parts before the cut have come", || {
            worker.status().bytes_received == before + sent
        });
        let next = TestWorker::spawn_with(2 + turn as u32, options);
        let mut pair = Pair::join(worker, next);
        let report = pair.hand_off();
        assert_eq!((report.refused, report.staying.len()), (0, 0), "{report:?}");
        pair.blue.commit(pair.reload, Some(0));
        pair.green.commit(pair.reload, None);
        worker = pair.green;
    }
    for Player { script, expected, places, written, mut stream } in players {
        let script_bytes = script.as_ref();
        stream.write_all(&script_bytes[written..]).expect("write");
        let heard = hear(script, stream);
        assert_eq!(heard, *expected, "moved at {places:?} of {}", script_bytes.len());
    }
}
