//! Where the services of a map stand: in layers, callers left of whom they call.

use std::collections::{BTreeMap, BTreeSet};

/// Where one stands: in which layer from the left, and where in it from the top.
pub(super) type Places = BTreeMap<String, (usize, usize)>;

/// Puts every name of these arrows into a layer. What calls itself in a circle is cut where the circle closes.
pub(super) fn layers(arrows: &BTreeSet<(String, String)>) -> Places {
    let names: BTreeSet<&String> = arrows.iter().flat_map(|(from, to)| [from, to]).collect();
    let mut depth: BTreeMap<&String, usize> = names.iter().map(|name| (*name, 0)).collect();
    // The longest way from the left; a circle would go on for ever, so it goes round at most as often as there are names.
    for _round in 0..names.len() {
        let mut moved = false;
        for (from, to) in arrows.iter().filter(|(from, to)| from != to) {
            let wanted = depth[from] + 1;
            if depth[to] < wanted && wanted < names.len() {
                depth.insert(to, wanted);
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    // Layers that a circle has left empty are taken out.
    let used: BTreeSet<usize> = depth.values().copied().collect();
    let layer: BTreeMap<usize, usize> =
        used.into_iter().enumerate().map(|(at, from)| (from, at)).collect();
    let mut rows: BTreeMap<usize, Vec<&String>> = BTreeMap::new();
    for (name, deep) in &depth {
        rows.entry(layer[deep]).or_default().push(name);
    }
    order(&mut rows, arrows);
    let mut places = Places::new();
    for (layer, names) in rows {
        for (row, name) in names.into_iter().enumerate() {
            places.insert(name.clone(), (layer, row));
        }
    }
    places
}

/// Orders each layer by where those stand that call into it, so that fewer arrows cross.
fn order(rows: &mut BTreeMap<usize, Vec<&String>>, arrows: &BTreeSet<(String, String)>) {
    let layers: Vec<usize> = rows.keys().copied().collect();
    let mut at: BTreeMap<&String, usize> = BTreeMap::new();
    for layer in layers {
        let Some(names) = rows.get_mut(&layer) else { continue };
        names.sort_by_key(|name| {
            let callers = arrows.iter().filter(|(_, to)| to == *name);
            let places: Vec<usize> =
                callers.filter_map(|(from, _)| at.get(from).copied()).collect();
            let middle = places.iter().sum::<usize>() * 100 / places.len().max(1);
            (middle, *name)
        });
        for (row, name) in names.iter().enumerate() {
            at.insert(name, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
        pairs.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
    }

    #[test]
    fn callers_stand_left_of_whom_they_call() {
        let places =
            layers(&arrows(&[("web", "orders"), ("orders", "payments"), ("web", "payments")]));
        assert_eq!((places["web"].0, places["orders"].0, places["payments"].0), (0, 1, 2));
    }

    #[test]
    fn circles_end_and_nobody_is_lost() {
        let places = layers(&arrows(&[("a", "b"), ("b", "c"), ("c", "a"), ("d", "d")]));
        assert_eq!(places.len(), 4);
        let mut taken: Vec<_> = places.values().collect();
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), 4, "two stand in one place: {places:?}");
        assert!(layers(&BTreeSet::new()).is_empty());
    }
}
