//! Named fault points: places where a test can kill, stop or fail this very process.
//!
//! Compiled to nothing unless the `fault-points` feature is on, which only the tests turn on. The
//! variable `ZDT_FAULT` holds a comma-separated list of `NAME@GENERATION=ACTION[:NTH]`; generation 0
//! is the supervisor, `successor` one that was started to replace it, `*` is any process. `NTH` (1 by default) is the passage that triggers it; `*` is
//! every one.
//! Actions: `kill` (SIGKILL to itself), `stop` (SIGSTOP to itself; the test sends SIGCONT), `fail`
//! ([`triggered`] returns true and the caller takes its error path), `exit` (exit code 3), `spin` (an endless
//! loop).
//!
//! Must not know: what the points mean.

/// Marks a fault point. Evaluates to true when the test asked this passage to `fail`.
#[macro_export]
macro_rules! fault_point {
    ($name:literal) => {{
        #[cfg(feature = "fault-points")]
        let triggered = $crate::fault::triggered($name);
        #[cfg(not(feature = "fault-points"))]
        let triggered = false;
        triggered
    }};
}

#[cfg(feature = "fault-points")]
mod armed {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// The generation of a supervisor that was started to replace another one.
    pub const SUCCESSOR: u32 = u32::MAX;

    enum Action {
        Kill,
        Stop,
        Fail,
        Exit,
        Spin,
    }

    struct Armed {
        name: String,
        generation: Option<u32>,
        action: Action,
        passages_left: u32,
        every: bool,
    }

    static GENERATION: AtomicU32 = AtomicU32::new(0);
    static ARMED: Mutex<Option<Vec<Armed>>> = Mutex::new(None);

    /// Tells which generation this process belongs to; the supervisor is 0, which is also the
    /// value before this is called.
    pub fn set_generation(generation: u32) {
        GENERATION.store(generation, Ordering::Relaxed);
    }

    fn parse(list: &str) -> Vec<Armed> {
        let parse_one = |item: &str| -> Option<Armed> {
            let (place, action) = item.trim().split_once('=')?;
            let (name, generation) = place.split_once('@')?;
            let (action, nth) = action.split_once(':').unwrap_or((action, "1"));
            Some(Armed {
                name: name.to_owned(),
                generation: match generation {
                    "*" => None,
                    "successor" => Some(SUCCESSOR),
                    number => Some(number.parse().ok()?),
                },
                action: match action {
                    "kill" => Action::Kill,
                    "stop" => Action::Stop,
                    "fail" => Action::Fail,
                    "exit" => Action::Exit,
                    "spin" => Action::Spin,
                    _ => return None,
                },
                every: nth == "*",
                passages_left: if nth == "*" { 1 } else { nth.parse().ok()? },
            })
        };
        list.split(',')
            .filter(|item| !item.trim().is_empty())
            .map(|item| {
                parse_one(item).unwrap_or_else(|| panic!("ZDT_FAULT: cannot read {item:?}"))
            })
            .collect()
    }

    /// Runs the fault that is armed for this passage of `name`, if any; true if the action is `fail`.
    pub fn triggered(name: &str) -> bool {
        let mut armed = ARMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let armed = armed.get_or_insert_with(|| {
            std::env::var("ZDT_FAULT").map(|list| parse(&list)).unwrap_or_default()
        });
        let here = GENERATION.load(Ordering::Relaxed);
        for point in armed {
            if point.name != name || point.generation.is_some_and(|wanted| wanted != here) {
                continue;
            }
            if point.passages_left == 0 {
                continue;
            }
            if !point.every {
                point.passages_left -= 1;
                if point.passages_left > 0 {
                    continue;
                }
            }
            eprintln!("fault point {name} triggered in generation {here}");
            match point.action {
                Action::Kill => signal_self(nix::sys::signal::Signal::SIGKILL),
                Action::Stop => signal_self(nix::sys::signal::Signal::SIGSTOP),
                Action::Exit => std::process::exit(3),
                Action::Spin => loop {
                    std::hint::spin_loop();
                },
                Action::Fail => return true,
            }
        }
        false
    }

    fn signal_self(signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::this(), signal).expect("signal to itself");
    }
}

#[cfg(feature = "fault-points")]
pub use armed::{SUCCESSOR, set_generation, triggered};

/// The generation of a supervisor that was started to replace another one.
#[cfg(not(feature = "fault-points"))]
pub const SUCCESSOR: u32 = u32::MAX;

/// Tells which generation this process belongs to.
#[cfg(not(feature = "fault-points"))]
pub fn set_generation(_generation: u32) {}
