//! What is particular to a rolling reload, a canary, and a rollback on request.

use super::*;

fn rolling_world(blues: u32, greens: u32, batch: u32, pause_ms: u64) -> World {
    World::new(rolling(batch, pause_ms), blues, greens, hello(1, 1))
}

/// Position of the first message to a worker that is wanted.
fn sent_at(world: &World, to: WorkerId, wanted: fn(&ToWorker) -> bool) -> Option<usize> {
    world.position(|a| matches!(a, Action::Send(worker, m) if *worker == to && wanted(m)))
}

fn hands_off(message: &ToWorker) -> bool {
    matches!(message, ToWorker::Handoff { .. })
}

#[test]
fn a_rolling_reload_goes_place_by_place() {
    let mut world = rolling_world(2, 2, 1, 0);
    assert_eq!(world.run(), Outcome::Committed);
    let flip_of = |place: u32| {
        world.position(
            |a| matches!(a, Action::Flip { batch, .. } if batch.green == (place..place + 1)),
        )
    };
    let spawn_of = |place: u32| {
        world.position(|a| matches!(a, Action::Spawn(batch) if batch.green.start == place))
    };
    let places = [
        spawn_of(0),
        flip_of(0),
        sent_at(&world, 1, hands_off),
        spawn_of(1),
        flip_of(1),
        sent_at(&world, 2, hands_off),
        world.position(|a| *a == Action::Persist(Mark::Committed)),
        sent_at(&world, 1, |m| matches!(m, ToWorker::Commit { drain_ms: Some(_), .. })),
    ];
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
    let shares: Vec<u16> = world
        .done
        .iter()
        .filter_map(|action| match action {
            Action::Flip { permille, .. } => Some(*permille),
            _ => None,
        })
        .collect();
    assert_eq!(shares, [500, 1_000]);
}

#[test]
fn there_is_a_pause_between_steps_and_none_after_the_last() {
    let mut world = rolling_world(3, 3, 1, 5_000);
    let started = world.now;
    assert_eq!(world.run(), Outcome::Committed);
    let took = world.now - started;
    assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&took), "{took:?}");
}

#[test]
fn a_failure_in_a_later_step_undoes_the_earlier_ones() {
    for stage in ["pausing", "starting", "proving", "settling", "handing_off"] {
        let mut world = rolling_world(2, 2, 1, 1_000);
        world.run_to("pausing");
        if stage != "pausing" {
            world.run_to(stage);
        }
        let victim = if ["pausing", "starting"].contains(&stage) { 101 } else { 102 };
        world.kill(victim);
        assert!(matches!(world.run(), Outcome::RolledBack(_)), "{stage}");
        // The worker that was replaced takes back and goes on; the other one never noticed.
        assert_eq!(world.sent(|worker, m| *worker == 1 && *m == ToWorker::ResumeAccepting), 1);
        let told = u32::from(stage == "handing_off") as usize;
        assert_eq!(world.sent(|worker, m| *worker == 2 && hands_off(m)), told, "{stage}");
        assert_eq!(
            world.sent(|worker, m| *worker == 2 && matches!(m, ToWorker::CancelHandoff { .. })),
            told,
            "{stage}"
        );
    }
}

#[test]
fn a_restarted_worker_takes_part_until_its_own_step() {
    let mut world = rolling_world(2, 2, 1, 1_000);
    world.run_to("pausing");
    world.kill(2);
    assert!(!world.machine.may_join(0) && world.machine.may_join(1));
    world.feed(Event::BlueJoined { worker: 9, index: 1, hello: hello(1, 1) });
    world.blue.push(9);
    assert_eq!(world.run(), Outcome::Committed);
    assert_eq!(world.sent(|worker, m| *worker == 9 && hands_off(m)), 1);
    assert_eq!(world.sent(|worker, m| *worker == 2 && hands_off(m)), 0);
}

#[test]
fn whoever_stops_does_not_wait_for_pauses() {
    let mut world = rolling_world(3, 3, 1, 600_000);
    world.run_to("pausing");
    let paused = world.now;
    world.feed(Event::Stop);
    assert_eq!(world.run(), Outcome::Committed);
    assert!(world.now - paused < Duration::from_secs(1));
}

#[test]
fn a_canary_that_does_well_becomes_the_generation() {
    let mut world = World::new(canary(), 2, 2, hello(1, 1));
    world.run_to("watching");
    let watched = world.now;
    world.run_to("settling");
    assert!(world.now >= watched + Duration::from_secs(30));
    assert_eq!(world.sent(|_, m| hands_off(m)), 0, "no connection moves before the decision");
    assert_eq!(world.run(), Outcome::Committed);
    let shares: Vec<u16> = world
        .done
        .iter()
        .filter_map(|action| match action {
            Action::Flip { permille, .. } => Some(*permille),
            _ => None,
        })
        .collect();
    assert_eq!(shares, [50, 1_000]);
}

#[test]
fn a_worker_that_is_restarted_beside_a_canary_takes_part() {
    let mut world = World::new(canary(), 2, 2, hello(1, 1));
    world.run_to("watching");
    world.kill(1);
    assert!(world.machine.may_join(0));
    world.blue.push(9);
    world.feed(Event::BlueJoined { worker: 9, index: 0, hello: hello(1, 1) });
    world.run_to("settling");
    assert!(!world.machine.may_join(0));
    assert_eq!(world.run(), Outcome::Committed);
    assert_eq!(world.sent(|worker, m| *worker == 9 && hands_off(m)), 1);
}

#[test]
fn a_canary_that_fails_is_undone_before_its_time() {
    let mut world = World::new(canary(), 2, 2, hello(1, 1));
    world.canary_fails = 200;
    world.run_to("watching");
    let watched = world.now;
    world.run_to("rolling_back");
    assert!(world.now < watched + Duration::from_secs(5));
    let outcome = world.run();
    assert!(matches!(&outcome, Outcome::RolledBack(why) if why.contains("200 of 1,000")));
    // What the canary had accepted has a way back, and blue never stopped accepting.
    assert!(
        world.position(|a| matches!(a, Action::OpenChannels(plan) if plan.len() == 2)).is_some()
    );
    assert_eq!(world.sent(|worker, m| *worker > 100 && hands_off(m)), 2);
    assert_eq!(world.sent(|_, m| *m == ToWorker::ResumeAccepting), 0);
}

#[test]
fn a_canary_that_nobody_asked_anything_is_undone() {
    let mut world = World::new(canary(), 2, 2, hello(1, 1));
    world.canary_serves = 0;
    let outcome = world.run();
    assert!(matches!(&outcome, Outcome::RolledBack(why) if why.contains("served 0 requests")));
}

#[test]
fn a_canary_whose_workers_do_not_say_how_it_does_is_undone() {
    let mut world = World::new(canary(), 1, 1, hello(1, 1));
    world.run_to("watching");
    world.answers.retain(|event| !matches!(event, Event::Sampled(_)));
    assert!(matches!(world.run(), Outcome::RolledBack(_)));
}

#[test]
fn a_rollback_may_be_asked_for_at_any_moment_before_the_commit() {
    for (options, stages) in [
        (Options { probation: Duration::from_secs(60), ..options() }, "probation"),
        (rolling(1, 1_000), "pausing"),
        (canary(), "watching"),
        (options(), "handing_off"),
    ] {
        let mut world = World::new(options, 2, 2, hello(1, 1));
        world.run_to(stages);
        world.feed(Event::RollBack);
        let outcome = world.run();
        assert!(matches!(&outcome, Outcome::RolledBack(why) if why.contains("asked for")));
    }
    let mut world = world(1, 1);
    world.run_to("proving");
    world.feed(Event::RollBack);
    assert!(matches!(world.outcome(), Outcome::FailedBeforeFlip(_)));
}
