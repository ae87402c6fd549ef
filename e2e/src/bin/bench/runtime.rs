//! F3.
use anyhow::Result;
/// Measures and prints.
pub async fn measure(requests: u64) -> Result<()> {
    println!("{requests}");
    Ok(())
}
