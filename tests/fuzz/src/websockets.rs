//! WebSocket's frames as a client sends them.

use bytes::BytesMut;
use embedded_hub::websocket::Decoder;

/// A number, and frames that come in pieces of so many bytes: whatever the pieces, they are the same.
pub(crate) fn frames(data: &[u8]) {
    let Some((&size, input)) = data.split_first() else { return };
    let whole = decode([input]);
    let (outcome, carried, answers) = &whole;
    assert!(carried.len() <= input.len() && answers.len() <= input.len(), "nobody is made to hold more than was sent");
    if outcome.is_err() {
        return;
    }
    assert_eq!(decode(input.chunks(usize::from(size).max(1))), whole);
}

type Decoded = (Result<bool, String>, Vec<u8>, Vec<u8>);

/// Whether the client has closed, what the frames carry, and what is answered.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut carried, mut answers) = (Decoder::default(), BytesMut::new(), BytesMut::new());
    let mut outcome = Ok(());
    for piece in pieces {
        outcome = decoder.decode(piece, &mut carried, &mut answers);
        if outcome.is_err() {
            break;
        }
    }
    let outcome = outcome.map(|()| decoder.is_closed()).map_err(|violation| violation.to_string());
    (outcome, carried.to_vec(), answers.to_vec())
}
