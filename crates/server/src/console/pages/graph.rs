//! Where the services of a map stand: in layers, callers left of whom they call.

use std::collections::{BTreeMap, BTreeSet};

/// Who asks, and whom.
pub(super) type Arrow = (String, String);
/// A place: in which layer from the left, and where in it from the top.
pub(super) type Place = (usize, usize);

/// Where everything is drawn.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    /// Where each service stands.
    pub(super) places: BTreeMap<String, Place>,
    /// Where an arrow that leads past layers has room in each of them, so that it lies behind nobody.
    pub(super) past: BTreeMap<Arrow, Vec<Place>>,
    /// How many places each layer has.
    pub(super) heights: Vec<usize>,
}

/// What has a place in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot<'a> {
    Service(&'a String),
    Past(&'a Arrow),
}

/// Puts every name of these arrows into a layer. What calls itself in a circle is cut where the circle closes.
pub(super) fn drawing(arrows: &BTreeSet<Arrow>) -> Drawing {
    let layer = layers(arrows);
    let mut rows: BTreeMap<usize, Vec<Slot<'_>>> = BTreeMap::new();
    for (name, layer) in &layer {
        rows.entry(*layer).or_default().push(Slot::Service(name));
    }
    for arrow in arrows {
        for between in layer[&arrow.0] + 1..layer[&arrow.1] {
            rows.entry(between).or_default().push(Slot::Past(arrow));
        }
    }
    order(&mut rows, arrows);
    let mut drawing = Drawing::default();
    for (layer, slots) in rows {
        drawing.heights.push(slots.len());
        for (row, slot) in slots.into_iter().enumerate() {
            match slot {
                Slot::Service(name) => _ = drawing.places.insert(name.clone(), (layer, row)),
                Slot::Past(arrow) => {
                    drawing.past.entry(arrow.clone()).or_default().push((layer, row));
                }
            }
        }
    }
    drawing
}

/// The layer of each name.
fn layers(arrows: &BTreeSet<Arrow>) -> BTreeMap<&String, usize> {
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
    depth.into_iter().map(|(name, deep)| (name, layer[&deep])).collect()
}

/// Orders each layer by where that stands which leads into it, so that fewer arrows cross.
fn order<'a>(rows: &mut BTreeMap<usize, Vec<Slot<'a>>>, arrows: &'a BTreeSet<Arrow>) {
    let layers: Vec<usize> = rows.keys().copied().collect();
    let mut at: BTreeMap<Slot<'a>, usize> = BTreeMap::new();
    // Where an arrow is that has come so far: where it last had room, or where it begins.
    let comes = |at: &BTreeMap<Slot<'a>, usize>, arrow: &'a Arrow| {
        at.get(&Slot::Past(arrow)).or_else(|| at.get(&Slot::Service(&arrow.0))).copied()
    };
    for layer in layers {
        let Some(slots) = rows.get_mut(&layer) else { continue };
        slots.sort_by_key(|slot| {
            let leads = |arrow: &&'a Arrow| match slot {
                Slot::Service(name) => arrow.1 == **name,
                Slot::Past(past) => arrow == past,
            };
            let places: Vec<usize> =
                arrows.iter().filter(leads).filter_map(|arrow| comes(&at, arrow)).collect();
            let middle = places.iter().sum::<usize>() * 100 / places.len().max(1);
            (middle, *slot)
        });
        for (row, slot) in slots.iter().enumerate() {
            at.insert(*slot, row);
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
        let all = arrows(&[("web", "orders"), ("orders", "payments"), ("web", "payments")]);
        let Drawing { places, past, heights } = drawing(&all);
        assert_eq!((places["web"].0, places["orders"].0, places["payments"].0), (0, 1, 2));
        // What leads past `orders` has room beside it.
        let room = &past[&("web".to_owned(), "payments".to_owned())];
        assert_eq!((past.len(), room.len(), room[0].0), (1, 1, 1));
        assert_ne!(room[0], places["orders"]);
        assert_eq!(heights, [1, 2, 1]);
    }

    #[test]
    fn circles_end_and_nobody_is_lost() {
        let places = drawing(&arrows(&[("a", "b"), ("b", "c"), ("c", "a"), ("d", "d")])).places;
        assert_eq!(places.len(), 4);
        let mut taken: Vec<_> = places.values().collect();
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), 4, "two stand in one place: {places:?}");
        assert!(drawing(&BTreeSet::new()).places.is_empty());
    }
}
