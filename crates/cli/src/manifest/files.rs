//! Which files are manifests, and their bounded contents.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_api::resource::Problem;
use countersign_program::system::{plain, read, read_regular};

use super::Problems;

/// The largest file that is read.
pub(super) const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many files one folder may give.
const FILES_MAX: usize = 4096;
/// What all files may have together.
const TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One file of manifests.
#[derive(Debug)]
pub(super) struct Source {
    /// As messages call it.
    pub(super) name: Arc<str>,
    /// The folder beside whose manifests files may be named; none for standard input.
    pub(super) folder: Option<PathBuf>,
    /// What it holds.
    pub(super) text: String,
    /// Where its lines begin, once somebody has asked.
    starts: OnceCell<Vec<usize>>,
}

impl Source {
    pub(super) fn new(name: Arc<str>, folder: Option<PathBuf>, text: String) -> Self {
        Self { name, folder, text, starts: OnceCell::new() }
    }

    /// The line of this number, from 1, without its end.
    pub(super) fn line(&self, number: u64) -> Option<&str> {
        let starts = self.starts.get_or_init(|| {
            let after = self.text.match_indices('\n').map(|(newline, _)| newline + 1);
            std::iter::once(0).chain(after).collect()
        });
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        self.text.get(*starts.get(index)?..)?.lines().next()
    }
}

/// Opens every file of a folder that ends in `.yaml` or `.yml`, in the order of their names; or one file; or
/// standard input. Folders within and hidden files are passed over.
///
/// # Errors
/// When there is nothing to read at all; a single file of a folder that cannot be read is a problem beside.
pub(super) fn open(path: &Path) -> Result<(Vec<Source>, Vec<Problem>), Problems> {
    if path == Path::new("-") {
        let text = read(std::io::stdin().lock(), FILE_BYTES_MAX)
            .map_err(|why| Problem::about("", "", why).in_file("standard input"))?;
        return Ok((vec![Source::new("standard input".into(), None, text)], Vec::new()));
    }
    let problem =
        |path: &Path, why: String| Problem::about("", "", why).in_file(path.display().to_string());
    let metadata = fs::metadata(path)
        .map_err(|error| problem(path, format!("cannot be read: {}", plain(&error))))?;
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    let paths = if metadata.is_dir() {
        listing(path).map_err(|why| problem(path, why))?
    } else {
        vec![path.to_owned()]
    };
    let mut total = 0;
    for path in paths {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        match read_regular(&path, FILE_BYTES_MAX) {
            Ok(text) => {
                total += text.len();
                if TOTAL_BYTES_MAX < total {
                    let why = format!(
                        "brings the manifests over {TOTAL_BYTES_MAX} bytes: apply them in parts"
                    );
                    problems.push(problem(&path, why));
                    break;
                }
                let name = path.display().to_string().into();
                sources.push(Source::new(name, Some(folder), text));
            }
            Err(why) => problems.push(problem(&path, why)),
        }
    }
    Ok((sources, problems))
}

fn listing(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("cannot be read: {}", plain(&error)))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| format!("cannot be read: {}", plain(&error)))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        if yaml && !hidden && !path.is_dir() {
            paths.push(path);
        }
        if FILES_MAX < paths.len() {
            return Err(format!("holds over {FILES_MAX} manifests' files: apply them in parts"));
        }
    }
    paths.sort();
    Ok(paths)
}
