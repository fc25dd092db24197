//! Tokens to a tree, by recursive descent.

use super::functions::Function;
use super::lexer::{Kind, Position, Token, error, tokens};
use super::{
    Aggregate, Comparison, Condition, Constant, Expression, Fold, Item, ItemValue, List, Operator, Path, Query,
    QueryError, Source,
};

/// How deeply parentheses, calls, `NOT` and signs may nest: more than a person reads, and a small part of the smallest
/// thread's stack.
const MAX_NESTING: usize = 64;

/// What a job's condition completes, and what one that names its source does.
const JOB_QUERY: &str = "SELECT * FROM devices WHERE ";
const SOURCE_QUERY: &str = "SELECT * ";

pub(super) fn query(text: &str) -> Result<Query, QueryError> {
    let mut parser = Parser::new(text, Position { line: 1, column: 1 })?;
    parser.source = parser.find_source();
    let query = parser.query()?;
    parser.end()?;
    Ok(query)
}

pub(super) fn job_condition(text: &str) -> Result<Condition, QueryError> {
    let names_source = text.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("FROM"));
    let completes = if names_source { SOURCE_QUERY } else { JOB_QUERY };
    let mut parser = Parser::new(text, Position { line: 1, column: completes.chars().count() + 1 })?;
    match &parser.token().kind {
        Kind::Symbol("*") => {
            parser.advance();
            parser.end()?;
            Ok(Condition::all())
        }
        Kind::Keyword("SELECT") => Err(parser.unexpected(", the condition of a job is what follows WHERE")),
        Kind::Keyword("FROM") => {
            parser.source = parser.find_source();
            if parser.source == Source::Jobs {
                return Err(parser.error("A condition is FROM devices or FROM devices.modules"));
            }
            let condition = parser.source_and_condition()?;
            parser.end()?;
            Ok(condition)
        }
        Kind::End => Err(parser.error("The condition is empty, * selects all devices")),
        _ => {
            let expression = Some(parser.expression()?);
            parser.end()?;
            Ok(Condition { source: Source::Devices, expression })
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    nesting: usize,
    source: Source,
    /// `FROM c`: paths may begin with `c.`.
    aliased: bool,
}

impl Parser {
    fn new(text: &str, start: Position) -> Result<Parser, QueryError> {
        let tokens = tokens(text, start)?;
        Ok(Parser { tokens, next: 0, nesting: 0, source: Source::Devices, aliased: false })
    }

    /// The source, looked up ahead of the select list, because it decides what paths mean. That it is one, and stands
    /// where it should, is checked when it is reached.
    fn find_source(&mut self) -> Source {
        let from = self.tokens.iter().position(|token| token.kind == Kind::Keyword("FROM"));
        let Some(Kind::Path(parts)) = from.and_then(|from| self.tokens.get(from + 1)).map(|token| &token.kind) else {
            return Source::Devices;
        };
        self.aliased = matches!(parts.as_slice(), [name] if name.eq_ignore_ascii_case("c"));
        source(parts).unwrap_or(Source::Devices)
    }

    fn query(&mut self) -> Result<Query, QueryError> {
        self.expect_keyword("SELECT")?;
        let top = if self.eat_keyword("TOP") { Some(self.count()?) } else { None };
        let list_at = self.token().at;
        let list = self.list()?;
        let condition = self.source_and_condition()?;
        let group_by = if self.eat_keyword("GROUP") {
            self.expect_keyword("BY")?;
            let path = self.path()?;
            if self.token().kind == Kind::Symbol(",") {
                return Err(self.unexpected(", GROUP BY takes one path"));
            }
            Some(path)
        } else {
            None
        };
        check_list(&list, group_by.as_ref(), self.source).map_err(|message| error(list_at, message))?;
        Ok(Query { top, list, condition, group_by })
    }

    fn source_and_condition(&mut self) -> Result<Condition, QueryError> {
        self.expect_keyword("FROM")?;
        match &self.token().kind {
            Kind::Path(parts) if source(parts).is_some() => self.advance(),
            _ => return Err(self.unexpected(", expected devices, devices.modules or devices.jobs")),
        };
        let expression = if self.eat_keyword("WHERE") { Some(self.expression()?) } else { None };
        Ok(Condition { source: self.source, expression })
    }

    fn count(&mut self) -> Result<u64, QueryError> {
        match self.token().kind {
            // More than that is no number of devices, and would not be a whole number in a double.
            Kind::Number(n) if n.fract() == 0.0 && (1.0..=1e9).contains(&n) => {
                self.advance();
                Ok(n as u64)
            }
            _ => Err(self.unexpected(", TOP needs a whole number from 1")),
        }
    }

    fn list(&mut self) -> Result<List, QueryError> {
        if self.eat("*") {
            return Ok(List::All);
        }
        let mut items = vec![self.item()?];
        while self.eat(",") {
            items.push(self.item()?);
        }
        Ok(List::Items(items))
    }

    fn item(&mut self) -> Result<Item, QueryError> {
        let value = match self.aggregate()? {
            Some(aggregate) => ItemValue::Aggregate(aggregate),
            None => ItemValue::Expression(self.expression()?),
        };
        let alias = if self.eat_keyword("AS") { Some(self.name()?) } else { None };
        Ok(Item { value, alias })
    }

    fn name(&mut self) -> Result<String, QueryError> {
        match &self.token().kind {
            Kind::Path(parts) if let [name] = parts.as_slice() => {
                let name = name.clone();
                self.advance();
                Ok(name)
            }
            _ => Err(self.unexpected(", expected a name")),
        }
    }

    fn aggregate(&mut self) -> Result<Option<Aggregate>, QueryError> {
        let Some(name) = self.called_name() else { return Ok(None) };
        if name.eq_ignore_ascii_case("COUNT") {
            self.advance();
            self.expect("(")?;
            if !self.eat(")") {
                return Err(self.unexpected(", COUNT() takes no argument"));
            }
            return Ok(Some(Aggregate::Count));
        }
        let Some(fold) = Fold::ALL.into_iter().find(|fold| fold.name().eq_ignore_ascii_case(name)) else {
            return Ok(None);
        };
        self.advance();
        self.expect("(")?;
        let path = self.path()?;
        self.expect(")")?;
        Ok(Some(Aggregate::Of(fold, path)))
    }

    /// The name before a `(`, if that is what comes.
    fn called_name(&self) -> Option<&str> {
        let opens = self.tokens.get(self.next + 1).is_some_and(|token| token.kind == Kind::Symbol("("));
        match &self.token().kind {
            Kind::Path(parts) if opens && let [name] = parts.as_slice() => Some(name),
            _ => None,
        }
    }

    fn expression(&mut self) -> Result<Expression, QueryError> {
        self.nested(Parser::or)
    }

    fn nested(&mut self, parse: fn(&mut Parser) -> Result<Expression, QueryError>) -> Result<Expression, QueryError> {
        if self.nesting == MAX_NESTING {
            return Err(self.error(format!("The expression is nested more than {MAX_NESTING} levels deep")));
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    fn or(&mut self) -> Result<Expression, QueryError> {
        let first = self.and()?;
        self.chain("OR", first, Parser::and, Expression::Or)
    }

    fn and(&mut self) -> Result<Expression, QueryError> {
        let first = self.not()?;
        self.chain("AND", first, Parser::not, Expression::And)
    }

    fn chain(
        &mut self,
        keyword: &'static str,
        first: Expression,
        operand: fn(&mut Parser) -> Result<Expression, QueryError>,
        node: fn(Vec<Expression>) -> Expression,
    ) -> Result<Expression, QueryError> {
        if self.token().kind != Kind::Keyword(keyword) {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.eat_keyword(keyword) {
            operands.push(operand(self)?);
        }
        Ok(node(operands))
    }

    fn not(&mut self) -> Result<Expression, QueryError> {
        if self.eat_keyword("NOT") {
            let operand = self.nested(Parser::not)?;
            return Ok(Expression::Not(Box::new(operand)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression, QueryError> {
        let left = self.sum()?;
        if let Some(comparison) = Comparison::ALL.into_iter().find(|c| self.token().kind == Kind::Symbol(c.symbol())) {
            self.advance();
            let right = self.sum()?;
            return Ok(Expression::Compare { left: Box::new(left), comparison, right: Box::new(right) });
        }
        for (keyword, negated) in [("IN", false), ("NIN", true)] {
            if self.eat_keyword(keyword) {
                return Ok(Expression::In { value: Box::new(left), list: self.constants()?, negated });
            }
        }
        Ok(left)
    }

    fn constants(&mut self) -> Result<Vec<Constant>, QueryError> {
        self.expect("[")?;
        let mut constants = Vec::new();
        if self.eat("]") {
            return Ok(constants);
        }
        loop {
            constants.push(self.constant()?);
            if !self.eat(",") {
                self.expect("]")?;
                return Ok(constants);
            }
        }
    }

    fn constant(&mut self) -> Result<Constant, QueryError> {
        let negative = self.eat("-");
        match self.token().constant() {
            Some(Constant::Number(number)) if negative => {
                self.advance();
                Ok(Constant::Number(-number))
            }
            Some(constant) if !negative => {
                self.advance();
                Ok(constant)
            }
            _ => Err(self.unexpected(", expected a constant")),
        }
    }

    fn sum(&mut self) -> Result<Expression, QueryError> {
        self.arithmetic(&[Operator::Add, Operator::Subtract], Parser::product)
    }

    fn product(&mut self) -> Result<Expression, QueryError> {
        self.arithmetic(&[Operator::Multiply, Operator::Divide, Operator::Remainder], Parser::signed)
    }

    fn arithmetic(
        &mut self,
        operators: &[Operator],
        operand: fn(&mut Parser) -> Result<Expression, QueryError>,
    ) -> Result<Expression, QueryError> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(&operator) = operators.iter().find(|o| self.token().kind == Kind::Symbol(o.symbol())) {
            self.advance();
            rest.push((operator, operand(self)?));
        }
        if rest.is_empty() { Ok(first) } else { Ok(Expression::Arithmetic { first: Box::new(first), rest }) }
    }

    fn signed(&mut self) -> Result<Expression, QueryError> {
        if !self.eat("-") {
            return self.primary();
        }
        match self.nested(Parser::signed)? {
            Expression::Constant(Constant::Number(number)) if number.is_sign_positive() => {
                Ok(Expression::Constant(Constant::Number(-number)))
            }
            operand => Ok(Expression::Negate(Box::new(operand))),
        }
    }

    fn primary(&mut self) -> Result<Expression, QueryError> {
        if self.eat("(") {
            let inner = self.expression()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.eat("[") {
            return Ok(Expression::Array(self.expressions("]")?));
        }
        if self.called_name().is_some() {
            return self.call();
        }
        if self.eat_keyword("UNDEFINED") {
            return Ok(Expression::Undefined);
        }
        if let Some(constant) = self.token().constant() {
            self.advance();
            return Ok(Expression::Constant(constant));
        }
        match self.token().kind {
            Kind::Path(_) => Ok(Expression::Path(self.path()?)),
            _ => Err(self.unexpected(", expected a value")),
        }
    }

    fn call(&mut self) -> Result<Expression, QueryError> {
        let name = self.called_name().unwrap_or_default();
        let Some(function) = Function::by_name(name) else {
            let is_aggregate =
                name.eq_ignore_ascii_case("COUNT") || Fold::ALL.iter().any(|f| f.name().eq_ignore_ascii_case(name));
            return Err(self.error(match is_aggregate {
                true => format!("The aggregate '{name}' can only be an item of the SELECT list"),
                false => format!("Unknown function '{name}'"),
            }));
        };
        let at = self.token().at;
        self.advance();
        self.expect("(")?;
        let arguments = self.expressions(")")?;
        if !function.arity().contains(&arguments.len()) {
            let text = format!("{} does not take {} arguments", function.name(), arguments.len());
            return Err(error(at, text));
        }
        Ok(Expression::Call { function, arguments })
    }

    /// Expressions with commas between them, and what closes them.
    fn expressions(&mut self, close: &'static str) -> Result<Vec<Expression>, QueryError> {
        let mut expressions = Vec::new();
        if self.eat(close) {
            return Ok(expressions);
        }
        loop {
            expressions.push(self.expression()?);
            if !self.eat(",") {
                self.expect(close)?;
                return Ok(expressions);
            }
        }
    }

    fn path(&mut self) -> Result<Path, QueryError> {
        let Kind::Path(parts) = &self.token().kind else { return Err(self.unexpected(", expected a path")) };
        let path = Path(self.rooted(parts));
        if self.source == Source::Jobs
            && let Some(root) = path.0.first()
            && TWIN_ONLY.contains(&root.as_str())
        {
            return Err(self.error(format!("Queries FROM devices.jobs cannot refer to the device's twin ('{root}')")));
        }
        self.advance();
        Ok(path)
    }

    /// A path without its source's prefix, its first part as the row has it.
    fn rooted(&self, parts: &[String]) -> Vec<String> {
        let begins_with = |prefix: &[&str]| {
            parts.len() > prefix.len()
                && prefix.iter().zip(parts).all(|(wanted, part)| part.eq_ignore_ascii_case(wanted))
        };
        let alias: &[&str] = if self.aliased { &["c"] } else { &[] };
        let prefixes = [self.source.prefix(), Source::Devices.prefix(), alias];
        let skipped = prefixes.into_iter().find(|prefix| begins_with(prefix)).map_or(0, <[_]>::len);
        let mut parts: Vec<String> = parts.iter().skip(skipped).cloned().collect();
        if let Some(root) = parts.first_mut()
            && let Some(&(_, attribute)) = ROOTS.iter().find(|(written, _)| written.eq_ignore_ascii_case(root))
        {
            *root = attribute.to_owned();
        }
        parts
    }

    fn token(&self) -> &Token {
        // The last token is `End`, and nothing goes past it.
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn advance(&mut self) {
        self.next += 1;
    }

    fn eat(&mut self, symbol: &'static str) -> bool {
        self.eat_kind(&Kind::Symbol(symbol))
    }

    fn eat_keyword(&mut self, keyword: &'static str) -> bool {
        self.eat_kind(&Kind::Keyword(keyword))
    }

    fn eat_kind(&mut self, kind: &Kind) -> bool {
        let found = self.token().kind == *kind;
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, symbol: &'static str) -> Result<(), QueryError> {
        if self.eat(symbol) { Ok(()) } else { Err(self.unexpected(&format!(", expected '{symbol}'"))) }
    }

    fn expect_keyword(&mut self, keyword: &'static str) -> Result<(), QueryError> {
        if self.eat_keyword(keyword) { Ok(()) } else { Err(self.unexpected(&format!(", expected {keyword}"))) }
    }

    fn end(&self) -> Result<(), QueryError> {
        if self.token().kind == Kind::End { Ok(()) } else { Err(self.unexpected("")) }
    }

    fn unexpected(&self, hint: &str) -> QueryError {
        match self.token() {
            Token { kind: Kind::End, .. } => self.error(format!("Unexpected end of the text{hint}")),
            Token { text, .. } => {
                let foreign = self.foreign();
                let hint = foreign.as_deref().unwrap_or(hint);
                self.error(format!("Unexpected character at input '{text}'{hint}"))
            }
        }
    }

    /// What to say of words and signs that other query languages have, which stand here or just before.
    fn foreign(&self) -> Option<String> {
        let before = self.next.checked_sub(1).and_then(|before| self.tokens.get(before));
        if let Some(Token { kind: Kind::Path(_), .. }) = before
            && self.token().kind == Kind::Symbol("[")
        {
            return Some(", odd names in a path are written .[[name]]".into());
        }
        [Some(self.token()), before].into_iter().flatten().find_map(|token| {
            let word = FOREIGN.into_iter().find(|word| word.eq_ignore_ascii_case(&token.text))?;
            Some(format!(", IoT Hub's query language has no {word}"))
        })
    }

    fn error(&self, message: impl Into<String>) -> QueryError {
        error(self.token().at, message)
    }
}

impl Token {
    fn constant(&self) -> Option<Constant> {
        match &self.kind {
            Kind::Number(number) => Some(Constant::Number(*number)),
            Kind::Text(text) => Some(Constant::Text(text.clone())),
            Kind::Keyword("TRUE") => Some(Constant::Bool(true)),
            Kind::Keyword("FALSE") => Some(Constant::Bool(false)),
            Kind::Keyword("NULL") => Some(Constant::Null),
            Kind::Keyword(_) | Kind::Path(_) | Kind::Symbol(_) | Kind::End => None,
        }
    }
}

fn source(parts: &[String]) -> Option<Source> {
    let is = |names: &[&str]| {
        names.len() == parts.len() && names.iter().zip(parts).all(|(name, part)| part.eq_ignore_ascii_case(name))
    };
    if is(&["c"]) {
        return Some(Source::Devices);
    }
    [Source::Devices, Source::Modules, Source::Jobs].into_iter().find(|source| is(source.prefix()))
}

/// Words of other query languages, for a better message: paths may be called so.
const FOREIGN: [&str; 11] =
    ["ORDER", "HAVING", "DISTINCT", "JOIN", "LIMIT", "OFFSET", "LIKE", "BETWEEN", "UNION", "EXISTS", "VALUE"];

/// What a twin has and the rows of its jobs have not.
const TWIN_ONLY: [&str; 2] = ["tags", "properties"];

/// What a list may hold depends on the rest of the query.
fn check_list(list: &List, group_by: Option<&Path>, source: Source) -> Result<(), String> {
    let items = match list {
        List::All if group_by.is_some() => return Err("SELECT * cannot be grouped".into()),
        List::All => return Ok(()),
        List::Items(_) if source == Source::Jobs => return Err("FROM devices.jobs allows SELECT * only".into()),
        List::Items(items) => items,
    };
    let folds = group_by.is_some() || items.iter().any(|item| item.aggregate().is_some());
    let mut names = std::collections::HashSet::new();
    for (place, item) in items.iter().enumerate() {
        if let ItemValue::Expression(expression) = &item.value
            && folds
            && !is_one_for_group(expression, group_by)
        {
            return Err(format!("Item {} is neither an aggregate nor what the query groups by", place + 1));
        }
        let name = item.name(place);
        if names.contains(&name) {
            return Err(format!("Two items are called '{name}', rename one of them with AS"));
        }
        names.insert(name);
    }
    Ok(())
}

fn is_one_for_group(expression: &Expression, group_by: Option<&Path>) -> bool {
    match expression {
        Expression::Path(path) => Some(path) == group_by,
        Expression::Undefined | Expression::Constant(_) => true,
        _ => false,
    }
}

/// Root attributes of twins and of job rows: as anybody may write them, and as rows have them. They are few, so a list
/// does; any other root is taken as written.
const ROOTS: &[(&str, &str)] = &[
    ("deviceId", "deviceId"),
    ("moduleId", "moduleId"),
    ("etag", "etag"),
    ("deviceEtag", "deviceEtag"),
    ("version", "version"),
    ("modelId", "modelId"),
    ("status", "status"),
    ("statusReason", "statusReason"),
    ("statusUpdateTime", "statusUpdateTime"),
    ("connectionState", "connectionState"),
    ("lastActivityTime", "lastActivityTime"),
    ("cloudToDeviceMessageCount", "cloudToDeviceMessageCount"),
    ("authenticationType", "authenticationType"),
    ("x509Thumbprint", "x509Thumbprint"),
    ("capabilities", "capabilities"),
    ("deviceScope", "deviceScope"),
    ("parentScopes", "parentScopes"),
    ("tags", "tags"),
    ("properties", "properties"),
    ("configurations", "configurations"),
    ("jobId", "jobId"),
    ("jobType", "jobType"),
    ("startTimeUtc", "startTimeUtc"),
    ("endTimeUtc", "endTimeUtc"),
    // As identities, and with them Azure's own tools, call it.
    ("statusUpdatedTime", "statusUpdateTime"),
    // The documentation's queries call it otherwise than its rows.
    ("createdTimeUtc", "createdDateTimeUtc"),
    ("createdDateTimeUtc", "createdDateTimeUtc"),
    ("lastUpdatedDateTimeUtc", "lastUpdatedDateTimeUtc"),
    ("outcome", "outcome"),
    ("error", "error"),
];
