//! `sqlx::migrate!` reads the migrations when it is compiled; cargo has to be told that they are part of this crate.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
