//! `latch job results`: each device's outcome, or each attempt's, page by page.

use std::io::{self, Write as _};

use anyhow::bail;
use chrono::TimeDelta;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::time;
use iothub_service::{PageRequest, ServiceClient};
use serde_json::{Value, json};

use crate::args::{ResultsArgs, ResultsFormat};
use crate::context::Context;
use crate::output::{Columns, cell, line, name};

/// Rows of one page: the most that a hub gives.
const PAGE: u32 = 1000;

pub(super) async fn run(service: &ServiceClient, args: ResultsArgs, context: &Context) -> anyhow::Result<()> {
    let format = match (context.json, args.format) {
        (true, None | Some(ResultsFormat::Json)) => ResultsFormat::Json,
        (true, Some(_)) => bail!("--json and another --format exclude each other"),
        (false, format) => format.unwrap_or(ResultsFormat::Table),
    };
    // A job that does not exist has no rows; say so rather than print nothing.
    service.get_job(&args.id).await?;
    let mut printer = Printer::new(format, if args.attempts { ATTEMPTS } else { DEVICES });
    let mut request = PageRequest { max_items: Some(PAGE), continuation: None };
    loop {
        let page = page(service, &args, &request).await?;
        printer.print(page.items.into_iter().filter(|row| wants(&args, row)))?;
        request.continuation = page.continuation;
        if request.continuation.is_none() {
            return printer.finish();
        }
    }
}

async fn page(
    service: &ServiceClient,
    args: &ResultsArgs,
    request: &PageRequest,
) -> anyhow::Result<iothub_service::Page> {
    Ok(match (args.attempts, status(args)) {
        (true, _) => service.job_attempts(&args.id, request).await?,
        (false, None) => service.device_jobs(&args.id, request).await?,
        // Where only some are wanted, the hub has fewer to send.
        (false, Some(status)) => service.query(&by_status(&args.id, status), request).await?,
    })
}

/// A failure has a class, and no other row has.
fn status(args: &ResultsArgs) -> Option<&'static str> {
    match args.failed || !args.class.is_empty() {
        true => Some("failed"),
        false => args.status.map(|status| status.name()),
    }
}

fn by_status(id: &JobId, status: &str) -> String {
    let id = id.as_str().replace('\'', "\\'");
    format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{id}' AND devices.jobs.status = '{status}'")
}

fn wants(args: &ResultsArgs, row: &Value) -> bool {
    status(args).is_none_or(|status| row["status"] == *status)
        && (args.class.is_empty() || class(row).is_some_and(|class| args.class.contains(&class)))
}

/// Why it failed, if it did. Azure's rows do not say: their error does.
fn class(row: &Value) -> Option<FailureClass> {
    if row["status"] != "failed" {
        return None;
    }
    let named = row["latch"]["failure"].as_str().or(row["failure"].as_str());
    let by_code = || Some(FailureClass::of_code(row["error"]["code"].as_str()?));
    named.and_then(FailureClass::by_name).or_else(by_code)
}

/// What is printed of each row: in a table, for people, and as CSV.
struct Shape {
    heading: &'static [&'static str],
    row: fn(&Value) -> Vec<String>,
    record: &'static [&'static str],
    fields: fn(&Value) -> Vec<Field>,
}

const DEVICES: Shape = Shape {
    heading: &["DEVICE", "STATUS", "TRIES", "TOOK", "OUTCOME", "ENDED"],
    row: |row| {
        let tries = cell(&row["latch"]["attempts"]);
        vec![name(row), cell(&row["status"]), tries, took(row), outcome(row), cell(&row["endTimeUtc"])]
    },
    record: &[
        "device",
        "module",
        "status",
        "class",
        "attempts",
        "queued",
        "started",
        "ended",
        "duration_ms",
        "answer_status",
        "payload",
        "error_code",
        "error_description",
    ],
    fields: |row| {
        let mut fields = vec![
            Field::text(&row["deviceId"]),
            Field::text(&row["moduleId"]),
            Field::text(&row["status"]),
            Field::of(class(row).map(FailureClass::name)),
            Field::plain(&row["latch"]["attempts"]),
            Field::plain(&row["createdDateTimeUtc"]),
            Field::plain(&row["startTimeUtc"]),
            Field::plain(&row["endTimeUtc"]),
            Field::of(duration(row).map(|took| took.num_milliseconds())),
        ];
        fields.extend(result(row));
        fields
    },
};

const ATTEMPTS: Shape = Shape {
    heading: &["DEVICE", "TRY", "STATUS", "TOOK", "OUTCOME", "ENDED"],
    row: |row| {
        let mut shown = outcome(row);
        if !row["late"].is_null() {
            shown.push_str(&format!(" (late, {}: {})", cell(&row["late"]["timeUtc"]), outcome(&row["late"])));
        }
        vec![name(row), cell(&row["attempt"]), cell(&row["status"]), took(row), shown, cell(&row["endTimeUtc"])]
    },
    record: &[
        "device",
        "module",
        "attempt",
        "status",
        "class",
        "started",
        "ended",
        "duration_ms",
        "answer_status",
        "payload",
        "error_code",
        "error_description",
        "late",
        "late_answer_status",
        "late_payload",
    ],
    fields: |row| {
        let mut fields = vec![
            Field::text(&row["deviceId"]),
            Field::text(&row["moduleId"]),
            Field::plain(&row["attempt"]),
            Field::text(&row["status"]),
            Field::of(class(row).map(FailureClass::name)),
            Field::plain(&row["startTimeUtc"]),
            Field::plain(&row["endTimeUtc"]),
            Field::of(duration(row).map(|took| took.num_milliseconds())),
        ];
        fields.extend(result(row));
        fields.push(Field::plain(&row["late"]["timeUtc"]));
        fields.extend(answer(&row["late"]));
        fields
    },
};

/// A field of a CSV record.
struct Field(String);

impl Field {
    /// What comes from elsewhere: a spreadsheet must not take it for a formula.
    fn text(value: &Value) -> Field {
        let text = Field::plain(value).0;
        match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
            true => Field(format!("'{text}")),
            false => Field(text),
        }
    }

    /// A number or a time. Nothing is the empty field.
    fn plain(value: &Value) -> Field {
        Field(if value.is_null() { String::new() } else { cell(value) })
    }

    fn of(value: Option<impl ToString>) -> Field {
        Field(value.map(|value| value.to_string()).unwrap_or_default())
    }
}

/// The answer's status and payload, and the error's code and description.
fn result(row: &Value) -> impl Iterator<Item = Field> {
    let error = ["code", "description"].map(|part| Field::text(&row["error"][part]));
    answer(row).into_iter().chain(error)
}

fn answer(row: &Value) -> [Field; 2] {
    let response = &row["outcome"]["deviceMethodResponse"];
    // As JSON, as a text and a number that look alike are not the same.
    let payload = response.get("payload").map(|payload| json!(payload.to_string())).unwrap_or_default();
    [Field::plain(&response["status"]), Field::text(&payload)]
}

/// From the first attempt to the device's end.
fn duration(row: &Value) -> Option<TimeDelta> {
    let at = |name: &str| time::parse(row[name].as_str()?);
    Some(at("endTimeUtc")? - at("startTimeUtc")?)
}

fn took(row: &Value) -> String {
    duration(row).map_or_else(|| "-".to_owned(), |took| shown(took.num_milliseconds()))
}

/// `45 ms`, `3.2 s`, `5 min 2 s`, `2 h 5 min`.
fn shown(milliseconds: i64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        ..1 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

pub(super) fn outcome(row: &Value) -> String {
    let method = &row["outcome"]["deviceMethodResponse"];
    if method.is_object() {
        return format!("{} {}", method["status"], method["payload"]);
    }
    match row["error"].as_object() {
        Some(error) => {
            let text = |name: &str| error.get(name).map(cell).unwrap_or_default();
            format!("{}: {}", text("code"), text("description"))
        }
        None if row["latch"]["step"].is_u64() => format!("goes on with step {}", row["latch"]["step"]),
        None if row["latch"]["awaited"] == json!(true) => "twin updated, waits for the device's report".to_owned(),
        None if row["outcome"].is_object() => "twin updated".to_owned(),
        None => "-".to_owned(),
    }
}

/// Prints rows as they come, and keeps none.
struct Printer {
    format: ResultsFormat,
    shape: Shape,
    columns: Columns,
    printed: bool,
}

impl Printer {
    fn new(format: ResultsFormat, shape: Shape) -> Printer {
        let columns = Columns::new(shape.heading);
        Printer { format, shape, columns, printed: false }
    }

    fn print(&mut self, rows: impl Iterator<Item = Value>) -> anyhow::Result<()> {
        match self.format {
            ResultsFormat::Table => {
                let rows: Vec<_> = rows.map(|row| (self.shape.row)(&row)).collect();
                // A page can be empty while more come; its widths would not do for them.
                if !rows.is_empty() {
                    self.columns.print(&rows)?;
                    self.printed = true;
                }
            }
            ResultsFormat::Csv => {
                let mut text = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
                if !std::mem::replace(&mut self.printed, true) {
                    text.write_record(self.shape.record)?;
                }
                for row in rows {
                    text.write_record((self.shape.fields)(&row).iter().map(|field| field.0.as_bytes()))?;
                }
                write(&text.into_inner().map_err(|error| error.into_error())?)?;
            }
            ResultsFormat::Json => {
                for row in rows {
                    let opening = if std::mem::replace(&mut self.printed, true) { "," } else { "[" };
                    let row = serde_json::to_string_pretty(&row)?.replace('\n', "\n  ");
                    write(format!("{opening}\n  {row}").as_bytes())?;
                }
            }
            ResultsFormat::Jsonl => rows.map(|row| row.to_string()).try_for_each(|row| line(&row))?,
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        match (self.format, self.printed) {
            (ResultsFormat::Table, false) => self.columns.print(&[]),
            (ResultsFormat::Json, false) => line("[]"),
            (ResultsFormat::Json, true) => line("\n]"),
            _ => Ok(()),
        }
    }
}

/// As [`line`], of bytes and without an end of line.
fn write(bytes: &[u8]) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(shape: &Shape, row: &Value) -> Vec<String> {
        (shape.fields)(row).into_iter().map(|field| field.0).collect()
    }

    #[test]
    fn a_row_has_as_many_cells_as_headings() {
        for shape in [DEVICES, ATTEMPTS] {
            assert_eq!((shape.row)(&json!({})).len(), shape.heading.len());
            assert_eq!(fields(&shape, &json!({})).len(), shape.record.len());
        }
    }

    #[test]
    fn a_failure_is_told_with_its_class_and_timing() {
        let row = json!({"deviceId": "d", "moduleId": "m", "status": "failed", "createdDateTimeUtc": "2026-11-24T08:00:00Z",
            "startTimeUtc": "2026-11-24T08:40:04.171Z", "endTimeUtc": "2026-11-24T08:40:07.4Z",
            "error": {"code": "GatewayTimeout", "description": "no answer, \"none\""}, "latch": {"attempts": 3}});
        let shown = (DEVICES.row)(&row);
        assert_eq!(shown[..4], ["d/m", "failed", "3", "3.2 s"]);
        let told = fields(&DEVICES, &row);
        assert_eq!(told[..5], ["d", "m", "failed", "timeout", "3"], "the class follows from the code");
        assert_eq!(told[8..], ["3229", "", "", "GatewayTimeout", "no answer, \"none\""]);
    }

    #[test]
    fn what_a_spreadsheet_would_run_is_a_text() {
        let row = json!({"deviceId": "=HYPERLINK(1)", "status": "completed",
            "outcome": {"deviceMethodResponse": {"status": -5, "payload": -7}}});
        let told = fields(&DEVICES, &row);
        assert_eq!((&*told[0], &*told[9], &*told[10]), ("'=HYPERLINK(1)", "-5", "'-7"));
        let text = json!({"outcome": {"deviceMethodResponse": {"status": 1, "payload": "5"}}});
        assert_eq!(fields(&DEVICES, &text)[10], "\"5\"");
    }

    #[test]
    fn times_are_told_in_two_units_at_most() {
        for (milliseconds, text) in
            [(0, "0 ms"), (999, "999 ms"), (3229, "3.2 s"), (302_000, "5 min 2 s"), (7_500_000, "2 h 5 min")]
        {
            assert_eq!(shown(milliseconds), text);
        }
    }
}
