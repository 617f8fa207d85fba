//! Tasks, one after the other.

use std::path::PathBuf;

use weft_simulations::tasks::{self, Verdict};

use crate::{real, weft};

/// Runs tasks one after the other.
pub(crate) fn tasks(files: &[PathBuf], named: Option<PathBuf>, quiet: bool) -> Result<bool, String> {
    let weft = weft(named)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for file in files.iter().map(|path| tasks::files(path)).collect::<Result<Vec<_>, _>>()?.concat() {
        println!("{}", file.display());
        let told = |id: &str, what: &str, verdict: &Verdict| {
            match verdict {
                Verdict::Passed => passed += 1,
                Verdict::Failed(_) => failed += 1,
                Verdict::Skipped(_) => skipped += 1,
            }
            if !quiet || matches!(verdict, Verdict::Failed(_)) {
                println!("  {id} {what}\n    {verdict}");
            }
        };
        if let Err(error) = real(tasks::run(&file, &weft, told)) {
            failed += 1;
            println!("  FAILED: {error}");
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0)
}
