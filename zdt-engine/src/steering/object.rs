//! The program's object file, and loading it.
//!
//! The object is committed, so that nobody needs an eBPF toolchain to build zdt; `cargo xtask ebpf`
//! makes it from `zdt-ebpf`, and `zdt-steering.sources` says from which sources it was made.
//!
//! Must not know: groups, slots.

use std::path::Path;

use aya::maps::{Array, MapData, MapInfo, PerCpuArray, ReusePortSockArray};
use aya::programs::SkReuseport;
use aya::{Ebpf, EbpfLoader, Pod};
use zdt_common::{BANKS, Counters, Group, MAX_GROUPS, MAX_WORKERS, Probe, Route, group_entries};

use super::SteeringError;

static OBJECT: &[u8] = aya::include_bytes_aligned!("zdt-steering.o");

/// The maps, all of which are pinned.
pub(super) const MAPS: [&str; 7] =
    ["ROUTE", "PROBE", "GROUPS", "SOCKETS", "TURNS", "LOADS", "COUNTERS"];

/// Maps and programs, loaded.
pub(super) struct Loaded {
    pub programs: Programs,
    pub route: Array<MapData, Route>,
    pub probe: Array<MapData, Probe>,
    pub groups: Array<MapData, Group>,
    pub sockets: ReusePortSockArray<MapData>,
    pub counters: PerCpuArray<MapData, Counters>,
    pub loads: MapData,
}

/// The entry points, one for each group; in the kernel only from their first use on.
pub(super) struct Programs {
    ebpf: Ebpf,
    in_kernel: [bool; MAX_GROUPS as usize],
}

impl Programs {
    /// The program of a group.
    pub fn get(&mut self, group: u32) -> Result<&mut SkReuseport, SteeringError> {
        let in_kernel = &mut self.in_kernel[group as usize];
        let program: &mut SkReuseport = self
            .ebpf
            .program_mut(&format!("steer_{group}"))
            .expect("the object has an entry point for every group")
            .try_into()
            .expect("entry points are of this type");
        if !*in_kernel {
            program.load().map_err(SteeringError::setup("load the steering program"))?;
            *in_kernel = true;
        }
        Ok(program)
    }

    /// Drops this process's hold on the program of a group.
    pub fn forget(&mut self, group: u32) {
        if std::mem::take(&mut self.in_kernel[group as usize])
            && let Ok(program) = self.get_unloaded(group)
        {
            // Fails only for a program that is not loaded.
            let _ = program.unload();
        }
    }

    fn get_unloaded(
        &mut self,
        group: u32,
    ) -> Result<&mut SkReuseport, aya::programs::ProgramError> {
        self.ebpf
            .program_mut(&format!("steer_{group}"))
            .expect("the object has an entry point for every group")
            .try_into()
    }
}

/// Creates the maps, or opens those in `pins`, and prepares the programs.
pub(super) fn load(max_workers: u32, pins: Option<&Path>) -> Result<Loaded, SteeringError> {
    let mut loader = EbpfLoader::new();
    // The program has no CO-RE relocations; reading the kernel's BTF would be for nothing.
    loader.btf(None);
    loader
        .map_max_entries("SOCKETS", group_entries(max_workers))
        .map_max_entries("LOADS", BANKS * max_workers)
        .map_max_entries("COUNTERS", group_entries(max_workers) + MAX_GROUPS);
    if let Some(pins) = pins {
        for name in MAPS {
            loader.map_pin_path(name, pins.join(name));
        }
    }
    let mut ebpf =
        loader.load(&bytes()).map_err(SteeringError::setup("create the maps of steering"))?;
    Ok(Loaded {
        route: array(&mut ebpf, "ROUTE")?,
        probe: array(&mut ebpf, "PROBE")?,
        groups: array(&mut ebpf, "GROUPS")?,
        sockets: take(&mut ebpf, "SOCKETS")
            .try_into()
            .map_err(SteeringError::map("open the map SOCKETS"))?,
        counters: take(&mut ebpf, "COUNTERS")
            .try_into()
            .map_err(SteeringError::map("open the map COUNTERS"))?,
        loads: match take(&mut ebpf, "LOADS") {
            aya::maps::Map::Array(data) => data,
            other => unreachable!("LOADS is an array, not {other:?}"),
        },
        programs: Programs { ebpf, in_kernel: [false; MAX_GROUPS as usize] },
    })
}

/// For how many workers the pinned maps were made; refuses maps that are not of this build's shape.
pub(super) fn pinned_max_workers(pins: &Path) -> Result<u32, SteeringError> {
    let info = |name: &str| {
        let path = pins.join(name);
        MapInfo::from_pin(&path).map_err(SteeringError::pin(&path))
    };
    let max_workers = info("LOADS")?.max_entries() / BANKS;
    let expected = [
        ("ROUTE", size_of::<Route>(), 1),
        ("PROBE", size_of::<Probe>(), 1),
        ("GROUPS", size_of::<Group>(), MAX_GROUPS),
        ("TURNS", 8, MAX_GROUPS),
        ("LOADS", 4, BANKS * max_workers),
        ("COUNTERS", size_of::<Counters>(), group_entries(max_workers) + MAX_GROUPS),
    ];
    for (name, value_bytes, entries) in expected {
        let found = info(name)?;
        let shape = (found.value_size() as usize, found.max_entries());
        if shape != (value_bytes, entries) || max_workers == 0 || max_workers > MAX_WORKERS {
            return Err(SteeringError::OtherLayout {
                dir: pins.to_owned(),
                found: format!("{name} has {} entries of {} bytes", shape.1, shape.0),
            });
        }
    }
    Ok(max_workers)
}

fn take(ebpf: &mut Ebpf, name: &str) -> aya::maps::Map {
    ebpf.take_map(name).unwrap_or_else(|| panic!("the object has a map {name}"))
}

fn array<V: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Array<MapData, V>, SteeringError> {
    take(ebpf, name).try_into().map_err(SteeringError::map("open a map of steering"))
}

/// The object: in test builds another one can be named, to try a fresh build of the program.
fn bytes() -> std::borrow::Cow<'static, [u8]> {
    #[cfg(feature = "fault-points")]
    if let Some(path) = std::env::var_os("ZDT_STEERING_OBJECT") {
        let object = std::fs::read(&path)
            .unwrap_or_else(|error| panic!("ZDT_STEERING_OBJECT={}: {error}", path.display()));
        return object.into();
    }
    OBJECT.into()
}
