//! `latch query`.

use iothub_protocol::query::{Query, QueryError};
use iothub_service::{PageRequest, ServiceError};
use serde_json::Value;

use crate::args::QueryArgs;
use crate::context::Context;
use crate::output::{document, line};

/// Rows of a page, the hub's most.
const PAGE: u32 = 1000;

/// One row a line, as it comes; with `--json` one array at the end.
pub(super) async fn run(args: QueryArgs, context: &Context) -> anyhow::Result<()> {
    let service = context.service()?;
    let mut request = PageRequest { max_items: Some(PAGE), continuation: None };
    let mut all = Vec::new();
    loop {
        let page = service.query(&args.query, &request).await.map_err(|error| explained(error, &args.query))?;
        if context.json {
            all.extend(page.items);
        } else {
            page.items.iter().try_for_each(|row| line(&row.to_string()))?;
        }
        request.continuation = page.continuation;
        if request.continuation.is_none() {
            break;
        }
    }
    if context.json { document(&Value::Array(all)) } else { Ok(()) }
}

/// With the place where a refused query goes wrong, if this program sees it, too: Azure itself does not tell.
fn explained(error: ServiceError, query: &str) -> anyhow::Error {
    match (&error, Query::parse(query)) {
        (ServiceError::Hub(refusal), Err(wrong)) if refusal.code.http_status() == 400 => {
            let error = error.to_string();
            let wrong_here = wrong.to_string();
            let reason = if error.contains(&wrong_here) { String::new() } else { format!("\n{wrong_here}") };
            anyhow::anyhow!("{error}{reason}\n{}", pointed(query, &wrong))
        }
        _ => error.into(),
    }
}

/// The line that is wrong, and below it a mark.
fn pointed(query: &str, wrong: &QueryError) -> String {
    /// As much of a long line as fits beside what is wrong.
    const AROUND: usize = 60;
    let line: Vec<char> = query.lines().nth(wrong.line - 1).unwrap_or_default().chars().collect();
    let at = (wrong.column - 1).min(line.len());
    let from = at.saturating_sub(AROUND);
    // Tabs would move the mark.
    let text: String = line.iter().skip(from).take(2 * AROUND).map(|c| if c.is_control() { ' ' } else { *c }).collect();
    format!("  {text}\n  {}^", " ".repeat(at - from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stands_below_what_is_wrong() {
        let marked = |query: &str| pointed(query, &Query::parse(query).expect_err(query));
        assert_eq!(
            marked("SELECT * FROM devices ORDER BY a"),
            format!("  SELECT * FROM devices ORDER BY a\n  {:22}^", "")
        );
        assert_eq!(marked("SELECT *\nFROM\ttwins"), "  FROM twins\n       ^");
        assert_eq!(marked("SELECT * FROM"), "  SELECT * FROM\n               ^");
        let long = format!("SELECT * FROM devices WHERE {} = = 1", "é".repeat(500));
        let marked = marked(&long);
        let (text, mark) = marked.split_once('\n').expect("two lines");
        assert_eq!(text.chars().nth(mark.chars().count() - 1), Some('='));
        assert!(text.chars().count() < 130, "{text}");
        assert_eq!(pointed("", &Query::parse("").expect_err("nothing")), "  \n  ^");
    }

    #[test]
    fn only_a_refused_query_is_explained() {
        use iothub_protocol::error::{ErrorCode, HubError};
        let refused = |code, text: &str| ServiceError::Hub(HubError::new(code, text));
        let query = "SELECT * FROM twins";
        let azure = explained(refused(ErrorCode::ArgumentInvalid, "BadRequest"), query).to_string();
        assert!(azure.contains("BadRequest\nSQL query parse failed") && azure.ends_with('^'), "{azure}");
        let ours = HubError::from(Query::parse(query).expect_err("no query"));
        let ours = explained(ServiceError::Hub(ours), query).to_string();
        assert_eq!(ours.matches("SQL query parse failed").count(), 1, "{ours}");
        let throttled = explained(refused(ErrorCode::ThrottlingException, "later"), query).to_string();
        assert!(!throttled.contains('^'), "{throttled}");
    }
}
