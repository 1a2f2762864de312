//! Steering outlives the supervisor.

use std::os::fd::AsFd;
use std::path::Path;

use zdt_engine::steering::{self, Bank, Policy, Steering, SteeringError};

use super::harness::*;

#[test]
fn a_later_supervisor_opens_it_again() {
    in_namespace("steering::pins::a_later_supervisor_opens_it_again", || {
        with_pin_dir(|dir| {
            let sockets: Vec<_> = (0..2).map(|_| listener((V4, 7000).into(), 64)).collect();
            let address = sockets[0].local_addr().expect("an address");
            {
                let mut first = Steering::load(3, Some(dir)).expect("steering");
                let group =
                    first.add_listener_group(&sockets[0], Policy::RoundRobin).expect("a group");
                for (slot, socket) in [(3, &sockets[0]), (4, &sockets[1])] {
                    first.set_slot(group, slot, socket).expect("set a slot");
                    first.set_ready(group, slot, true).expect("ready");
                }
                first.flip(Bank::only(9, 1)).expect("flip");
            }
            // Nobody supervises, connections are steered all the same.
            let _early: Vec<_> = (0..10).map(|_| connect(address).expect("connect")).collect();

            let mut second = Steering::open_pinned(dir).expect("open");
            assert_eq!(second.max_workers(), 3);
            assert_eq!(second.current().expect("the route").epoch, 9);
            let group = second.find_group(address).expect("the group");
            assert_eq!(second.listener_groups()[0].policy, Policy::RoundRobin);
            assert!(second.is_ready(group, 3).expect("a slot"));
            assert!(!second.has_socket(group, 0).expect("a slot"));
            let counted = |steering: &Steering, slot: usize| {
                steering.counters().expect("counters")[0].slots[slot].selected
            };
            assert_eq!((counted(&second, 3), counted(&second, 4)), (5, 5));

            // It steers: the maps are the ones in use, also by a program of its own build.
            assert_eq!(
                second.add_listener_group(&sockets[1], Policy::Hash).expect("known already"),
                group
            );
            second.set_ready(group, 4, false).expect("not ready");
            let _late: Vec<_> = (0..10).map(|_| connect(address).expect("connect")).collect();
            assert_eq!((counted(&second, 3), counted(&second, 4)), (15, 5));
            // And a group more works as in the first.
            let other = listener((V6, 0).into(), 64);
            let group = second.add_listener_group(&other, Policy::Hash).expect("a group");
            second.set_slot(group, 3, other.as_fd()).expect("set a slot");
            second.set_ready(group, 3, true).expect("ready");
            let _client = connect(other.local_addr().expect("an address")).expect("connect");
            assert_eq!(accept_all(&other).len(), 1);
            assert!(dir.join("layout-1/steer_1").exists());
            second.remove_listener_group(group).expect("remove");
            assert!(!dir.join("layout-1/steer_1").exists());
        });
    });
}

#[test]
fn a_fresh_start_takes_the_place_of_what_was_pinned() {
    in_namespace("steering::pins::a_fresh_start_takes_the_place_of_what_was_pinned", || {
        with_pin_dir(|dir| {
            let socket = listener((V4, 0).into(), 64);
            let mut first = Steering::load(3, Some(dir)).expect("steering");
            let group = first.add_listener_group(&socket, Policy::Hash).expect("a group");
            first.set_slot(group, 0, &socket).expect("set a slot");
            drop(first);

            // The very socket can be put into the new maps.
            let mut second = Steering::load(5, Some(dir)).expect("steering");
            assert!(second.listener_groups().is_empty());
            let group = second.add_listener_group(&socket, Policy::Hash).expect("a group");
            second.set_slot(group, 0, &socket).expect("set a slot");
            second.set_ready(group, 0, true).expect("ready");
            let _client = connect(socket.local_addr().expect("an address")).expect("a connection");
            assert_eq!(accept_all(&socket).len(), 1);
            assert_eq!(Steering::open_pinned(dir).expect("open").max_workers(), 5);
        });
    });
}

#[test]
fn what_is_not_there_or_not_ours_is_said() {
    in_namespace("steering::pins::what_is_not_there_or_not_ours_is_said", || {
        with_pin_dir(|dir| {
            assert!(matches!(Steering::open_pinned(dir), Err(SteeringError::NotPinned { .. })));
            drop(Steering::load(2, Some(dir)).expect("steering"));
            std::fs::rename(dir.join("layout-1"), dir.join("layout-0")).expect("rename");
            let error = Steering::open_pinned(dir).expect_err("another layout");
            assert!(
                matches!(&error, SteeringError::OtherLayout { found, .. } if found == "layout-0")
            );
            // A start from nothing removes it.
            drop(Steering::load(2, Some(dir)).expect("steering"));
            assert!(!dir.join("layout-0").exists());
            steering::remove_pins(dir).expect("remove");
            assert!(matches!(Steering::open_pinned(dir), Err(SteeringError::NotPinned { .. })));
            // Twice is no error.
            steering::remove_pins(dir).expect("remove");
        });
    });
}

#[test]
fn pins_go_below_the_system_bpffs_where_there_is_one() {
    in_namespace("steering::pins::pins_go_below_the_system_bpffs_where_there_is_one", || {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        // Mounts of this thread only.
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let system = Path::new("/sys/fs/bpf");
        mount(Some("bpf"), system, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a bpffs");

        let run_dir = tempfile::Builder::new().prefix(".zdt_Ü ").tempdir().expect("a directory");
        let dir = steering::pin_directory(run_dir.path());
        assert_eq!(dir.parent(), Some(system));
        drop(Steering::load(2, Some(&dir)).expect("steering"));
        assert_eq!(Steering::open_pinned(&dir).expect("open").max_workers(), 2);
        let other = tempfile::tempdir().expect("a directory");
        assert_ne!(steering::pin_directory(other.path()), dir);
        steering::remove_pins(&dir).expect("remove the pins");
        assert!(!dir.exists());
    });
}

#[test]
fn a_socket_that_does_not_share_its_address_is_refused() {
    in_namespace("steering::pins::a_socket_that_does_not_share_its_address_is_refused", || {
        let alone = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut steering = Steering::load(2, None).expect("steering");
        let error = steering.add_listener_group(&alone, Policy::Hash).expect_err("no SO_REUSEPORT");
        assert!(matches!(error, SteeringError::Attach { .. }), "{error:?}");
        assert!(steering.listener_groups().is_empty());
    });
}

#[test]
fn support_is_probed_without_a_trace() {
    in_namespace("steering::pins::support_is_probed_without_a_trace", || {
        steering::probe_support().expect("root, and a kernel that can");
    });
}

#[test]
fn without_rights_the_error_says_what_is_missing() {
    let test = "steering::pins::without_rights_the_error_says_what_is_missing";
    in_namespace(test, || {
        // Rights belong to threads: this one gives up its own, for good.
        nobody();
        let error = steering::probe_support().expect_err("nobody may not");
        assert!(error.is_not_permitted(), "{error:?}");
        assert!(error.to_string().contains("run as root"), "{error}");
    });
}

fn nobody() {
    // SAFETY: a system call without pointers. Not through libc, which would change all threads.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
    assert_eq!(result, 0, "setresuid: {}", std::io::Error::last_os_error());
}

/// Runs `body` with a directory for pins, in the same way as a run directory has one.
fn with_pin_dir(body: impl FnOnce(&Path)) {
    let run_dir = tempfile::tempdir().expect("a directory");
    let dir = steering::pin_directory(run_dir.path());
    body(&dir);
    steering::remove_pins(&dir).expect("remove the pins");
}
