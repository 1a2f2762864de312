//! Workers whose clients have used up the descriptors.

use zdt_engine::control::FromWorker;

use crate::lab::{Pair, TestWorker, client};

/// The reload fails; the worker stays within its supervisor's reach.
#[test]
fn a_worker_without_descriptors_does_not_hang_up_on_its_supervisor() {
    let mut blue = TestWorker::spawn(1);
    let address = blue.listen();
    let mut client = client::websocket(address, "/ws/counter");
    assert_eq!(client::count(&mut client), (1, 1));
    let mut pair = Pair { blue, green: TestWorker::spawn(2), reload: 1 };
    pair.blue.leave_descriptors(2);
    pair.open_channel(0, Some(1));
    let reason = pair.blue.wait("ChannelFailed", |message| match message {
        FromWorker::ChannelFailed { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("descriptors expected"), "{reason}");
    assert_eq!(pair.blue.status().connections, 1);
    assert_eq!(client::count(&mut client), (2, 1));
}
