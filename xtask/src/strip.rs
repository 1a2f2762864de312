//! Makes the linker's object into the one that is committed: no DWARF, nothing that depends on where it
//! was built. BTF stays: the kernel wants it for callbacks, and shows its names.
//!
//! Must not know: who builds the object, and how.

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf;

/// The object without what is not needed.
pub fn strip(linked: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("the linker's output is not an ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        let about = name.strip_prefix(".rel").unwrap_or(&name);
        section.delete = about.starts_with(".debug_");
    }
    for (number, symbol) in builder.symbols.iter_mut().enumerate() {
        // Names of local functions hold a hash of the path of the crate. Nobody links by them.
        if symbol.st_bind() == elf::STB_LOCAL && symbol.st_type() == elf::STT_FUNC {
            symbol.name = format!("local_{number}").into_bytes().into();
        }
        let of_deleted = symbol.section.is_some_and(|section| builder.sections.get(section).delete);
        symbol.delete = of_deleted || symbol.st_type() == elf::STT_FILE;
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one table, this writer in two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the stripped object")?;
    Ok(stripped)
}
