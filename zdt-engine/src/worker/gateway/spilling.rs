//! Files of held bodies in the worker's ring: made, written, read, closed.
//!
//! At most one operation is in flight on a file, and its end leads to the next one. Nobody waits for it but the request
//! whose body it is: the kernel does it aside where it would take time.
//!
//! Must not know: why something is written.

use std::os::fd::AsFd;

use super::Shared;
use super::spill::{Doing, Step};
use crate::sys;
use crate::uring::SendBuffer;
use crate::worker::Worker;
use crate::worker::tokens::Token;

impl Worker {
    /// Does what is to be done with a file.
    pub(super) fn run_spill(&mut self, shared: &Shared, place: usize) {
        let mut core = shared.borrow_mut();
        let step = core.next_step(place);
        let token = Token::Spill(place).pack();
        match step {
            Step::Nothing => {}
            Step::Close => {
                if let Some(file) = core.spills.files.remove(place).file {
                    self.ring.close_aside(file);
                }
            }
            Step::Write => {
                if core.spills.files[place].file.is_none() {
                    let made = match core.spills.directory() {
                        _ if fault_point!("spill.make") => {
                            Err(std::io::ErrorKind::StorageFull.into())
                        }
                        Some(directory) => sys::file::nameless(directory),
                        None => Err(std::io::ErrorKind::NotFound.into()),
                    };
                    match made {
                        Ok(file) => core.spills.files[place].file = Some(file),
                        Err(error) => {
                            let Some(index) = core.spills.files[place].exchange else { return };
                            let why = format!("no file can be made for it: {error}");
                            return core.fail_spill(index, &why);
                        }
                    }
                }
                let spill = &mut core.spills.files[place];
                let Some(file) = &spill.file else { return };
                let bytes = SendBuffer::Owned(std::mem::take(&mut spill.tail));
                spill.doing = Doing::Writing;
                self.ring.write_at(file.as_fd(), token, bytes, 0, spill.written);
            }
            Step::Read(count) => {
                let mut bytes = core.buffer();
                bytes.resize(count, 0);
                let spill = &mut core.spills.files[place];
                let Some(file) = &spill.file else { return };
                spill.doing = Doing::Reading;
                self.ring.read_at(file.as_fd(), token, bytes, spill.read);
            }
        }
    }

    /// A read or a write has ended.
    pub(in crate::worker) fn on_spill_done(
        &mut self,
        place: usize,
        result: i32,
        buffer: SendBuffer,
    ) {
        let Some(shared) = self.gateway.clone() else { return };
        let SendBuffer::Owned(bytes) = buffer else { return };
        let mut core = shared.borrow_mut();
        match core.spills.files[place].doing {
            Doing::Writing => core.on_spill_written(place, result, bytes),
            Doing::Reading => core.on_spill_read(place, result, bytes),
            Doing::Nothing => unreachable!("an operation on a file that had none"),
        }
        let exchange = core.spills.files[place].exchange.map(|index| &core.exchanges[index]);
        let frozen = exchange.filter(|exchange| exchange.frozen).map(|exchange| exchange.key);
        drop(core);
        if let Some(key) = frozen {
            self.try_offer(key);
        }
    }
}
