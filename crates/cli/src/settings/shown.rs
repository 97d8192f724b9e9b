//! What a running program was told, for `status --config`.

use std::path::Path;

use anyhow::Result;
use countersign_program::settings::{REMEMBERED_END, Remembered};

use crate::exit::{Exit, Failure};
use crate::output::{self, Output, Table};

/// The largest such file that is read.
const FILE_BYTES_MAX: usize = 1024 * 1024;
/// How many programs are shown.
const PROGRAMS_MAX: usize = 1000;

/// Shows what the programs on a data directory were told.
pub(crate) fn show(data: Option<&Path>, output: Output) -> Result<Exit> {
    let Some(data) = data else {
        let message = "no data directory is known: name it with `--data DIR`";
        return Err(Failure::unreachable(message).into());
    };
    let mut folders =
        vec![data.to_owned(), data.join("server"), data.join("agent"), data.join("run")];
    folders.extend(run_folder(data));
    let mut programs: Vec<Remembered> = Vec::new();
    for folder in folders {
        programs.extend(read(&folder));
    }
    if programs.is_empty() {
        let data = data.display();
        let message = format!("no program has run on `{data}`: is it the right data directory?");
        return Err(Failure::unreachable(message).into());
    }
    match output {
        Output::Json => output::json(&programs)?,
        Output::Human => {
            for shown in &programs {
                let mut table = Table::new(["setting", "value", "from"]);
                for setting in &shown.settings {
                    table.row([
                        setting.name.clone(),
                        setting.value.clone(),
                        setting.source.clone(),
                    ]);
                }
                output::line(&format!(
                    "{}\n{}",
                    output::printable(&shown.program),
                    table.render(2)
                ))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Where `up` keeps its sockets, and its proxies their settings.
fn run_folder(data: &Path) -> Option<std::path::PathBuf> {
    let bytes = std::fs::read(data.join("up.json")).ok()?;
    let found: crate::find::Whereabouts = serde_json::from_slice(&bytes).ok()?;
    let socket = countersign_program::system::socket_path(&found.admin).ok()?;
    socket.parent().map(Path::to_owned)
}

fn read(folder: &Path) -> Vec<Remembered> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(REMEMBERED_END))
        .take(PROGRAMS_MAX)
        .collect();
    paths.sort();
    let parse = |path: &std::path::PathBuf| {
        let text = countersign_program::system::read_regular(path, FILE_BYTES_MAX).ok()?;
        serde_json::from_str(&text).ok()
    };
    paths.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_in_which_no_program_ran_is_told() {
        assert!(show(Some(Path::new("/no/such")), Output::Human).is_err());
    }
}
