//! Compiles `schema/` with protox (pure Rust: no installed `protoc`) and prost.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=schema");
    let mut config = prost_build::Config::new();
    config.bytes(["."]).btree_map(["."]);
    config.compile_fds(protox::compile(["mesh.proto", "exchange.proto"], ["schema"])?)?;
    config.extern_path(".weft.mesh.v1", "crate::wire::mesh");
    config.compile_fds(protox::compile(["cluster.proto"], ["schema"])?)?;
    Ok(())
}
