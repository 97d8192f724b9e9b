//! Texts that were read before by this process. A text means the same each time; only under which name it stands, how far it
//! goes and what is declared beside it changes, and that is not kept. So whoever changes one policy of thousands has one read
//! anew and not thousands.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cedar_policy::Policy;

use crate::reads::Reads;
use crate::text::Layout;
use crate::{Limit, Scope};

/// As many texts as are compiled together at most: a set that is compiled again and again is known as a whole.
const TEXTS_MAX: usize = 20_000;
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// A text in which nothing is wrong.
pub(crate) struct Text {
    pub(crate) layout: Layout,
    /// In its order.
    pub(crate) policies: Vec<Known>,
}

/// One policy of a text.
pub(crate) struct Known {
    /// Under the name under which it was read first.
    pub(crate) policy: Policy,
    /// What tells it from others of its text.
    pub(crate) suffix: Option<String>,
    pub(crate) scope: Scope,
    pub(crate) limit: Option<Limit>,
    pub(crate) reads: Reads,
    pub(crate) counted: bool,
    pub(crate) one_way: bool,
}

/// Those that were asked for since the others were, and those others. When the first fill up, they take the place of the second,
/// which go: what is asked for again and again stays, and what nobody asks for any more does not.
struct Texts<T> {
    fresh: HashMap<Box<str>, T>,
    stale: HashMap<Box<str>, T>,
    bytes: usize,
    texts_max: usize,
    bytes_max: usize,
}

static TEXTS: Mutex<Option<Texts<Arc<Text>>>> = Mutex::new(None);

/// What the text is known to mean.
pub(crate) fn recall(text: &str) -> Option<Arc<Text>> {
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    texts.as_mut()?.recall(text)
}

/// Keeps what was read in it.
pub(crate) fn remember(text: &str, read: Arc<Text>) {
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    texts.get_or_insert_with(|| Texts::new(TEXTS_MAX, BYTES_MAX)).remember(text.into(), read);
}

impl<T: Clone> Texts<T> {
    fn new(texts_max: usize, bytes_max: usize) -> Self {
        let (fresh, stale) = (HashMap::new(), HashMap::new());
        Self { fresh, stale, bytes: 0, texts_max, bytes_max }
    }

    fn recall(&mut self, text: &str) -> Option<T> {
        if let Some(read) = self.fresh.get(text) {
            return Some(read.clone());
        }
        let (text, read) = self.stale.remove_entry(text)?;
        self.remember(text, read.clone());
        Some(read)
    }

    fn remember(&mut self, text: Box<str>, read: T) {
        if self.texts_max <= self.fresh.len() || self.bytes_max < self.bytes + text.len() {
            self.stale = std::mem::take(&mut self.fresh);
            self.bytes = 0;
        }
        self.bytes += text.len();
        self.fresh.insert(text, read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held<T>(texts: &Texts<T>) -> usize {
        texts.fresh.len() + texts.stale.len()
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes_however_much_comes() {
        let mut texts = Texts::new(10, 1000);
        texts.remember("kept".into(), 0);
        for number in 1..1000 {
            texts.remember(format!("p{number}").into(), number);
            assert_eq!(texts.recall("kept"), Some(0), "{number}");
            assert!(held(&texts) <= 20);
        }
        assert_eq!(texts.recall("p1"), None);
        assert_eq!(texts.recall("p999"), Some(999));
    }

    #[test]
    fn few_long_texts_take_no_more_room_than_many_short_ones() {
        let mut texts = Texts::new(10, 1000);
        for number in 0..100 {
            texts.remember(format!("{number:0>400}").into(), number);
            assert!(held(&texts) <= 4);
        }
        assert_eq!(texts.recall(&format!("{:0>400}", 99)), Some(99));
    }
}
