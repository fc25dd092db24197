//! Text to tokens.

use super::{MAX_QUERY, QueryError};

/// A token and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: Position,
    /// As written, for messages.
    pub(super) text: String,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// One of [`KEYWORDS`], in capitals.
    Keyword(&'static str),
    /// A name or a dotted path of names.
    Path(Vec<String>),
    Number(f64),
    Text(String),
    Symbol(&'static str),
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// Words that are no names, unless they are part of a longer path.
pub(super) const KEYWORDS: [&str; 16] = [
    "SELECT",
    "TOP",
    "FROM",
    "WHERE",
    "GROUP",
    "BY",
    "AS",
    "AND",
    "OR",
    "NOT",
    "IN",
    "NIN",
    "NULL",
    "UNDEFINED",
    "TRUE",
    "FALSE",
];

/// Longer ones first, so that `<=` is not read as `<`.
const SYMBOLS: [&str; 17] = ["!=", "<>", "<=", ">=", "<", ">", "=", "+", "-", "*", "/", "%", "(", ")", "[", "]", ","];

pub(super) fn keyword(name: &str) -> Option<&'static str> {
    KEYWORDS.into_iter().find(|keyword| keyword.eq_ignore_ascii_case(name))
}

/// Whether a name may begin a path without `[[ ]]`.
pub(super) fn is_first_name(name: &str) -> bool {
    name.starts_with(begins_name) && name.chars().all(continues_name)
}

/// Whether a later part of a path may stand without `[[ ]]`.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(continues_name)
}

fn begins_name(c: char) -> bool {
    c.is_alphabetic() || c == '_' || c == '$'
}

fn continues_name(c: char) -> bool {
    begins_name(c) || c.is_numeric()
}

/// All tokens of a text; the last one is [`Kind::End`]. `start` is where the text begins in the query it is part of.
pub(super) fn tokens(text: &str, start: Position) -> Result<Vec<Token>, QueryError> {
    let mut lexer = Lexer { rest: text, at: start };
    if text.chars().nth(MAX_QUERY).is_some() {
        return Err(lexer.error(format!("The text is longer than {MAX_QUERY} characters")));
    }
    let mut tokens = Vec::new();
    loop {
        lexer.advance_while(char::is_whitespace);
        let (at, begin) = (lexer.at, lexer.rest);
        let kind = lexer.token()?;
        let is_end = kind == Kind::End;
        let text = begin.get(..begin.len() - lexer.rest.len()).unwrap_or_default().to_owned();
        tokens.push(Token { kind, at, text });
        if is_end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    at: Position,
}

impl<'a> Lexer<'a> {
    fn token(&mut self) -> Result<Kind, QueryError> {
        let Some(first) = self.peek() else { return Ok(Kind::End) };
        if begins_name(first) {
            return self.path();
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if first == '\'' || first == '"' {
            return self.text(first);
        }
        match SYMBOLS.into_iter().find(|symbol| self.rest.starts_with(symbol)) {
            Some(symbol) => {
                self.advance_by(symbol);
                Ok(Kind::Symbol(if symbol == "<>" { "!=" } else { symbol }))
            }
            None => Err(self.error(format!("Unexpected character at input '{first}'"))),
        }
    }

    fn path(&mut self) -> Result<Kind, QueryError> {
        let mut parts = vec![self.advance_while(continues_name).to_owned()];
        while self.advance_by(".") {
            let quoted_at = self.at;
            if self.advance_by("[[") {
                let Some(length) = self.rest.find("]]") else {
                    return Err(error(quoted_at, "[[ is not closed by ]]"));
                };
                let name = self.advance_bytes(length);
                parts.push(name.to_owned());
                self.advance_by("]]");
            } else {
                match self.advance_while(continues_name) {
                    "" => return Err(self.error("A name must follow the dot; odd names are written [[name]]")),
                    name => parts.push(name.to_owned()),
                }
            }
        }
        if let [name] = parts.as_slice()
            && let Some(keyword) = keyword(name)
        {
            return Ok(Kind::Keyword(keyword));
        }
        Ok(Kind::Path(parts))
    }

    fn number(&mut self) -> Result<Kind, QueryError> {
        let (at, begin) = (self.at, self.rest);
        let value = if self.advance_by("0x") || self.advance_by("0X") {
            let digits = self.advance_while(|c| c.is_ascii_hexdigit());
            // A 64-bit number; above 2^53 the nearest that a double holds, as with decimal ones.
            u64::from_str_radix(digits, 16).ok().map(|value| value as f64)
        } else {
            self.advance_while(|c| c.is_ascii_digit());
            if self.advance_by(".") {
                self.advance_while(|c| c.is_ascii_digit());
            }
            if self.advance_by("e") || self.advance_by("E") {
                let _sign = self.advance_by("-") || self.advance_by("+");
                self.advance_while(|c| c.is_ascii_digit());
            }
            let written = begin.get(..begin.len() - self.rest.len()).unwrap_or_default();
            written.parse::<f64>().ok().filter(|value| value.is_finite())
        };
        match value {
            Some(value) if !self.peek().is_some_and(continues_name) => Ok(Kind::Number(value)),
            _ => {
                self.advance_while(continues_name);
                let written = begin.get(..begin.len() - self.rest.len()).unwrap_or_default();
                Err(error(at, format!("'{written}' is not a number")))
            }
        }
    }

    fn text(&mut self, quote: char) -> Result<Kind, QueryError> {
        let at = self.at;
        self.advance();
        let mut text = String::new();
        loop {
            match self.advance() {
                None => return Err(error(at, format!("The text that begins here has no closing {quote}"))),
                Some('\\') => text.push(self.escaped()?),
                // A doubled one is one of the text's.
                Some(c) if c == quote && !self.advance_by(c.encode_utf8(&mut [0; 4])) => return Ok(Kind::Text(text)),
                Some(c) => text.push(c),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, QueryError> {
        let at = self.at;
        match self.advance() {
            Some(c @ ('\'' | '"' | '\\')) => Ok(c),
            Some('u') => {
                let unit = self.code_unit(at)?;
                if !(0xD800..0xDC00).contains(&unit) {
                    return char::from_u32(unit).ok_or_else(|| error(at, "\\u escapes a lone half of a pair"));
                }
                // A character beyond U+FFFF is two escapes, as in JSON.
                let low = if self.advance_by("\\u") { self.code_unit(at)? } else { 0 };
                let pair = (0xDC00..0xE000).contains(&low).then(|| 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00));
                pair.and_then(char::from_u32).ok_or_else(|| error(at, "\\u escapes a lone half of a pair"))
            }
            _ => Err(error(at, "A text may escape \\' \\\" \\\\ and \\uXXXX only")),
        }
    }

    fn code_unit(&mut self, at: Position) -> Result<u32, QueryError> {
        let digits = self.rest.get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let unit = unit.ok_or_else(|| error(at, "\\u needs four hexadecimal digits"))?;
        self.advance_bytes(4);
        Ok(unit)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn advance(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next()?;
        self.rest = chars.as_str();
        if next == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(next)
    }

    fn advance_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let length = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        self.advance_bytes(length)
    }

    fn advance_by(&mut self, prefix: &str) -> bool {
        let found = self.rest.starts_with(prefix);
        if found {
            self.advance_bytes(prefix.len());
        }
        found
    }

    /// `length` is at a character's boundary.
    fn advance_bytes(&mut self, length: usize) -> &'a str {
        let taken = self.rest.get(..length).unwrap_or_default();
        for _ in taken.chars() {
            self.advance();
        }
        taken
    }

    fn error(&self, message: impl Into<String>) -> QueryError {
        error(self.at, message)
    }
}

pub(super) fn error(at: Position, message: impl Into<String>) -> QueryError {
    QueryError { line: at.line, column: at.column, message: message.into() }
}
