//! Golden scripts, which an operator could read. A script is a list of blocks with a blank line between: commands, `---`, and
//! what came of them. `WEFT_RECORD=1 cargo test` writes anew what came.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::str::FromStr;

/// What a command tells, or why it makes no sense.
pub(crate) type Told = Result<String, Box<dyn Error>>;

/// A command: words, and some of the form `key=value`.
pub(crate) struct Line<'l> {
    words: std::vec::IntoIter<&'l str>,
    named: BTreeMap<&'l str, &'l str>,
}

impl<'l> Line<'l> {
    fn new(line: &'l str) -> Self {
        Self::of(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// A command of these words.
    pub(crate) fn of(words: &[&'l str]) -> Self {
        let (named, words): (Vec<&str>, Vec<&str>) = words
            .iter()
            .partition(|word| word.split_once('=').is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase())));
        let named = named.into_iter().filter_map(|word| word.split_once('=')).collect();
        Self { words: words.into_iter(), named }
    }

    /// The next word.
    pub(crate) fn word(&mut self) -> Result<&'l str, Box<dyn Error>> {
        self.words.next().ok_or_else(|| "too few words".into())
    }

    /// What is said under a key.
    pub(crate) fn named<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, Box<dyn Error>>
    where
        T::Err: Error + 'static,
    {
        Ok(self.named.remove(key).map(str::parse).transpose()?)
    }

    /// Nothing else is said.
    pub(crate) fn end(mut self) -> Result<(), Box<dyn Error>> {
        match self.words.next().or_else(|| self.named.keys().next().copied()) {
            Some(word) => Err(format!("{word:?} is too much").into()),
            None => Ok(()),
        }
    }
}

/// Runs every script of a folder, each from the beginning, and compares what came with what is written there.
pub(crate) fn run<S: Default>(folder: &Path, mut command: impl FnMut(&mut S, Line<'_>) -> Told) {
    let scripts = fs::read_dir(folder).expect("there are scripts").map(|entry| entry.expect("readable").path());
    let mut count = 0;
    for path in scripts {
        let text = fs::read_to_string(&path).expect("readable");
        let (mut script, mut came) = (S::default(), String::new());
        for block in text.trim_end().split("\n\n") {
            let above = block.split_once("---").map_or(block, |(above, _)| above).trim_end();
            came += &format!("{above}\n---\n");
            for line in above.lines().filter(|line| !line.starts_with('#')) {
                let told = command(&mut script, Line::new(line));
                came += &told.unwrap_or_else(|error| panic!("{}: {line}: {error}", path.display()));
            }
            came.push('\n');
        }
        let came = format!("{}\n", came.trim_end());
        if std::env::var_os("WEFT_RECORD").is_some() {
            fs::write(&path, &came).expect("written");
        }
        assert_eq!(came, fs::read_to_string(&path).expect("readable"), "{}", path.display());
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}
