//! `status --handshakes`, for people.

use countersign_api::admin::{Handshake, HandshakeDirection, HandshakesResponse};

use crate::output::Table;

pub(super) fn handshakes(response: &HandshakesResponse) -> String {
    let mut table =
        Table::new(["at", "at the door of", "peer", "outcome", "count", "took", "tls", "detail"]);
    for handshake in &response.handshakes {
        table.row([
            handshake.at.to_string(),
            place(handshake),
            peer(handshake),
            handshake.code.map_or_else(|| "admitted".to_owned(), |code| format!("refused: {code}")),
            handshake.count.to_string(),
            format!("{} µs", handshake.micros),
            format!("{} {}", handshake.version, handshake.group).trim().to_owned(),
            handshake.detail.clone(),
        ]);
    }
    if table.is_empty() {
        return "no handshake was seen yet\n".to_owned();
    }
    let lost = match response.dropped {
        0 => String::new(),
        dropped => {
            format!("\n{dropped} handshakes were not told, because there were too many at once\n")
        }
    };
    table.render(0) + &lost
}

fn place(handshake: &Handshake) -> String {
    let door = if handshake.service.is_empty() { &handshake.point } else { &handshake.service };
    match handshake.direction {
        HandshakeDirection::Inbound => door.clone(),
        HandshakeDirection::Outbound => format!("{door} (dialled)"),
    }
}

fn peer(handshake: &Handshake) -> String {
    let name = match handshake.direction {
        HandshakeDirection::Inbound => &handshake.peer_id,
        // For a dialled door, who dialled is what one looks for.
        HandshakeDirection::Outbound => &handshake.local_id,
    };
    if name.is_empty() { handshake.peer_address.clone() } else { name.clone() }
}
