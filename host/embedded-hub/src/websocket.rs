//! WebSocket's frames (RFC 6455) as the server of MQTT meets them, and the stream of bytes that they carry.
//!
//! MQTT does not heed where a frame ends, so what comes is passed on at once: a frame may be as large as it likes, and
//! an idle connection holds no buffer. There are no extensions.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest head of a frame: two bytes, eight of length, four of mask.
const MAX_HEAD: usize = 14;
/// Longest payload of a ping, pong or close; the protocol's.
const MAX_CONTROL: usize = 125;
/// Bytes taken from the socket at once.
const READ_SIZE: usize = 4096;
/// A frame of ours holds at most so much, and so much waits for the socket.
const WRITE_SIZE: usize = 16 * 1024;

/// Why the connection must end, as the protocol numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a frame is not as RFC 6455 has it")]
    Protocol = 1002,
    #[error("MQTT comes in binary messages, not in text")]
    Text = 1003,
}

/// Takes a client's frames apart, however they are cut.
#[derive(Debug, Default)]
pub struct Decoder {
    head: [u8; MAX_HEAD],
    head_size: usize,
    frame: Option<Frame>,
    /// Within a message of several frames.
    is_in_message: bool,
    /// What has come of a control frame's payload.
    control: Vec<u8>,
    is_closed: bool,
}

#[derive(Debug)]
struct Frame {
    kind: Kind,
    mask: [u8; 4],
    position: usize,
    left: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Close,
    Ping,
    Pong,
}

impl Decoder {
    /// Put what MQTT is to read into `data`, and what the client is to be answered into `answers`.
    ///
    /// # Errors
    /// What the client did wrong; nothing more of it may be read then.
    pub fn decode(&mut self, mut input: &[u8], data: &mut BytesMut, answers: &mut BytesMut) -> Result<(), Violation> {
        // What comes behind a close is not looked at.
        while !self.is_closed {
            let Some(frame) = &mut self.frame else {
                match input.split_first() {
                    None => return Ok(()),
                    Some((&byte, rest)) => {
                        input = rest;
                        self.take_head(byte)?;
                    }
                }
                continue;
            };
            let size = usize::try_from(frame.left).unwrap_or(usize::MAX).min(input.len());
            let (part, rest) = input.split_at(size);
            input = rest;
            let (position, mask) = (frame.position, frame.mask);
            let unmasked = part.iter().enumerate().map(|(at, byte)| byte ^ mask[(position + at) % 4]);
            match frame.kind {
                Kind::Data => data.extend(unmasked),
                Kind::Close | Kind::Ping | Kind::Pong => self.control.extend(unmasked),
            }
            frame.position = (position + size) % 4;
            frame.left -= size as u64;
            if frame.left > 0 {
                return Ok(());
            }
            let kind = frame.kind;
            self.frame = None;
            self.end_frame(kind, answers);
        }
        Ok(())
    }

    /// The client has closed in good order.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    fn take_head(&mut self, byte: u8) -> Result<(), Violation> {
        self.head[self.head_size] = byte;
        self.head_size += 1;
        let head = &self.head[..self.head_size];
        let [first, second, rest @ ..] = head else { return Ok(()) };
        // Reserved bits belong to extensions, and a client always masks.
        if first & 0x70 != 0 || second & 0x80 == 0 {
            return Err(Violation::Protocol);
        }
        let length_size = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((length, mask)) = rest.split_at_checked(length_size) else { return Ok(()) };
        let Ok(mask) = <[u8; 4]>::try_from(mask) else { return Ok(()) };
        let number = length.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        let (left, least) = match length_size {
            0 => (u64::from(second & 0x7f), 0),
            2 => (number, 126),
            _ => (number, 1 << 16),
        };
        // The shortest form is the only one.
        if left < least || left >> 63 != 0 {
            return Err(Violation::Protocol);
        }
        let kind = self.kind(first & 0x0f, first & 0x80 != 0, left)?;
        self.head_size = 0;
        self.frame = Some(Frame { kind, mask, position: 0, left });
        Ok(())
    }

    fn kind(&mut self, opcode: u8, is_last: bool, size: u64) -> Result<Kind, Violation> {
        match opcode {
            0 | 2 => {
                let continues = opcode == 0;
                if continues != self.is_in_message {
                    return Err(Violation::Protocol);
                }
                self.is_in_message = !is_last;
                Ok(Kind::Data)
            }
            1 => Err(Violation::Text),
            8..=10 if is_last && size <= MAX_CONTROL as u64 => Ok(match opcode {
                8 => Kind::Close,
                9 => Kind::Ping,
                _ => Kind::Pong,
            }),
            _ => Err(Violation::Protocol),
        }
    }

    fn end_frame(&mut self, kind: Kind, answers: &mut BytesMut) {
        if kind == Kind::Data {
            return;
        }
        let payload = std::mem::take(&mut self.control);
        match kind {
            Kind::Data | Kind::Pong => {}
            Kind::Ping => put_frame(answers, 10, &payload),
            Kind::Close => {
                self.is_closed = true;
                // The code comes back; its text need not.
                put_frame(answers, 8, &payload[..payload.len().min(2)]);
            }
        }
    }
}

/// Write a whole message of ours; a server does not mask.
fn put_frame(out: &mut BytesMut, opcode: u8, payload: &[u8]) {
    out.put_u8(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(size), _) if usize::from(size) <= MAX_CONTROL => out.put_u8(size),
        (_, Ok(size)) => {
            out.put_u8(126);
            out.put_u16(size);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(payload.len() as u64);
        }
    }
    out.extend_from_slice(payload);
}

/// The bytes within the frames of a connection, in both directions.
pub(crate) struct WebSocket<S> {
    stream: S,
    decoder: Decoder,
    incoming: BytesMut,
    outgoing: BytesMut,
    has_said_goodbye: bool,
}

impl<S> WebSocket<S> {
    pub(crate) fn new(stream: S) -> WebSocket<S> {
        let (incoming, outgoing) = (BytesMut::new(), BytesMut::new());
        WebSocket { stream, decoder: Decoder::default(), incoming, outgoing, has_said_goodbye: false }
    }

    fn say_goodbye(&mut self, code: u16) {
        if !std::mem::replace(&mut self.has_said_goodbye, true) {
            put_frame(&mut self.outgoing, 8, &code.to_be_bytes());
        }
    }
}

impl<S: AsyncWrite + Unpin> WebSocket<S> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.outgoing))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(written);
        }
        // What a large message needed goes back.
        self.outgoing = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.incoming.is_empty() && !this.decoder.is_closed() {
            // A client that pings and does not read is not read either.
            if this.outgoing.len() > WRITE_SIZE {
                ready!(this.poll_send(context))?;
            }
            let mut space = [0; READ_SIZE];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(violation) = this.decoder.decode(read.filled(), &mut this.incoming, &mut this.outgoing) {
                this.say_goodbye(violation as u16);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
            }
            if this.decoder.is_closed() {
                this.has_said_goodbye = true;
            }
            if let Poll::Ready(Err(error)) = this.poll_send(context) {
                return Poll::Ready(Err(error));
            }
        }
        let size = out.remaining().min(this.incoming.len());
        out.put_slice(&this.incoming[..size]);
        this.incoming.advance(size);
        if this.incoming.is_empty() {
            this.incoming = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.has_said_goodbye {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.outgoing.len() >= WRITE_SIZE {
            ready!(this.poll_send(context))?;
        }
        let part = &data[..data.len().min(WRITE_SIZE)];
        put_frame(&mut this.outgoing, 2, part);
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.say_goodbye(1000);
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A frame as a client sends it.
    fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_frame(&mut out, 0, payload);
        let head = out.len() - payload.len();
        out[0] = first;
        out[1] |= 0x80;
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        out[..head].iter().copied().chain(mask).chain(masked).collect()
    }

    fn client(first: u8, payload: &[u8]) -> Vec<u8> {
        frame(first, payload, [1, 2, 3, 4])
    }

    /// What MQTT reads and what the client is answered.
    fn decode(input: &[u8]) -> Result<(Vec<u8>, Vec<u8>, bool), Violation> {
        let (mut decoder, mut data, mut answers) = (Decoder::default(), BytesMut::new(), BytesMut::new());
        decoder.decode(input, &mut data, &mut answers)?;
        Ok((data.to_vec(), answers.to_vec(), decoder.is_closed()))
    }

    #[test]
    fn frames_are_taken_apart_and_answered() {
        let long = vec![7; 70_000];
        let pieces = [client(0x02, b"ab"), client(0x89, b"?"), client(0x00, b"c"), client(0x80, b"d")].concat();
        for (name, input, data, answers, is_closed) in [
            ("one", client(0x82, b"hello"), &b"hello"[..], &b""[..], false),
            ("none", client(0x82, b""), b"", b"", false),
            ("of two bytes' length", client(0x82, &long[..200]), &long[..200], b"", false),
            ("of eight bytes' length", client(0x82, &long), &long, b"", false),
            ("a message in pieces with a ping within", pieces, b"abcd", b"\x8a\x01?", false),
            ("a pong that nobody asked for", client(0x8a, b"!"), b"", b"", false),
            ("a close", client(0x88, b"\x03\xe8bye"), b"", b"\x88\x02\x03\xe8", true),
            ("a close without a code", client(0x88, b""), b"", b"\x88\x00", true),
            ("behind a close", [client(0x88, b""), vec![0xff; 9]].concat(), b"", b"\x88\x00", true),
            ("half a head", vec![0x82], b"", b"", false),
        ] {
            let expected = Ok((data.to_vec(), answers.to_vec(), is_closed));
            assert_eq!(decode(&input), expected, "{name}");
        }
    }

    #[test]
    fn what_no_client_may_send_ends_the_connection() {
        let mut unmasked = BytesMut::new();
        put_frame(&mut unmasked, 2, b"x");
        for (name, input, violation) in [
            ("text", client(0x81, b"x"), Violation::Text),
            ("no mask", unmasked.to_vec(), Violation::Protocol),
            ("a reserved bit", client(0xc2, b"x"), Violation::Protocol),
            ("an unknown opcode", client(0x83, b"x"), Violation::Protocol),
            ("a continuation of nothing", client(0x80, b"x"), Violation::Protocol),
            ("a message within another", [client(0x02, b"x"), client(0x82, b"y")].concat(), Violation::Protocol),
            ("a ping in pieces", client(0x09, b"x"), Violation::Protocol),
            ("a large ping", client(0x89, &[0; 126]), Violation::Protocol),
            ("a long form of a short length", vec![0x82, 0xfe, 0, 1, 0, 0, 0, 0, 9], Violation::Protocol),
            ("a length below zero", [&[0x82, 0xff, 0x80][..], &[0; 11]].concat(), Violation::Protocol),
        ] {
            assert_eq!(decode(&input), Err(violation), "{name}");
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_frames_are_cut(
            payload in prop::collection::vec(any::<u8>(), 0..300), mask in any::<[u8; 4]>(), cut in 1usize..40,
        ) {
            let input = [frame(0x02, &payload, mask), frame(0x89, b"ping", mask), frame(0x80, &payload, mask)].concat();
            let (mut decoder, mut data, mut answers) = (Decoder::default(), BytesMut::new(), BytesMut::new());
            for part in input.chunks(cut) {
                decoder.decode(part, &mut data, &mut answers).expect("frames");
            }
            prop_assert_eq!(data.to_vec(), [&payload[..], &payload].concat());
            prop_assert_eq!(answers.to_vec(), b"\x8a\x04ping");
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(input in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&input);
        }
    }

    #[tokio::test]
    async fn a_stream_carries_bytes_both_ways_and_says_goodbye() {
        let (server, mut peer) = tokio::io::duplex(64);
        let mut socket = WebSocket::new(server);
        let talk = async {
            let mut request = [0; 5];
            socket.read_exact(&mut request).await.expect("read");
            assert_eq!(&request, b"hello");
            socket.write_all(&vec![5; 20_000]).await.expect("written");
            socket.flush().await.expect("flushed");
            assert_eq!(socket.read(&mut request).await.expect("the end"), 0);
            assert!(socket.write(b"x").await.is_err(), "after the close");
            socket.shutdown().await.expect("closed");
            drop(socket);
        };
        let listen = async {
            peer.write_all(&client(0x82, b"hello")).await.expect("sent");
            let mut heard = vec![0; 2 * 4 + 20_000];
            peer.read_exact(&mut heard).await.expect("an answer");
            assert_eq!(&heard[..4], [0x82, 126, 0x40, 0]);
            peer.write_all(&client(0x88, &[3, 232])).await.expect("sent");
            heard.clear();
            peer.read_to_end(&mut heard).await.expect("the end");
            assert_eq!(heard, [0x88, 2, 3, 232], "one close, not two");
        };
        tokio::join!(talk, listen);
    }

    #[tokio::test]
    async fn a_violation_is_told_with_its_code() {
        let (server, mut peer) = tokio::io::duplex(64);
        let mut socket = WebSocket::new(server);
        peer.write_all(&client(0x81, b"x")).await.expect("sent");
        let mut space = [0; 5];
        assert_eq!(socket.read(&mut space).await.map_err(|error| error.kind()), Err(io::ErrorKind::InvalidData));
        socket.shutdown().await.expect("closed");
        drop(socket);
        let mut heard = Vec::new();
        peer.read_to_end(&mut heard).await.expect("the end");
        assert_eq!(heard, [0x88, 2, 3, 235]);
    }
}
