//! The `zdt` command: the engine with its built-in services.

fn main() -> std::process::ExitCode {
    zdt_engine::cli::main()
}
