//! What a reader cannot see, or would be fooled by, in a text of unknown origin.

/// Characters that show nothing, or that change how others are shown: controls, marks of direction, joiners, tags.
pub fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{115f}'
                | '\u{1160}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_or_hides_is_unseen_and_scripts_of_people_are_not() {
        for unseen in [
            '\0',
            '\u{1b}',
            '\u{ad}',
            '\u{200b}',
            '\u{200f}',
            '\u{202e}',
            '\u{2066}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            assert!(is_unseen(unseen), "{unseen:?}");
        }
        for seen in ['a', ' ', 'é', '\u{5e9}', '字', '…'] {
            assert!(!is_unseen(seen), "{seen:?}");
        }
    }
}
