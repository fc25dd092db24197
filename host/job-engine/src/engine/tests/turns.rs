//! Which of several jobs has its turn.

use iothub_protocol::job::policy::{JobPolicy, Priority};

use super::*;

fn prior(name: &str, priority: u8) -> JobRequest {
    let policy = Some(JobPolicy { priority: Priority(priority), ..JobPolicy::default() });
    JobRequest { policy, ..twin_job(name) }
}

/// Of the devices from `first` on, so many.
fn of(request: JobRequest, first: usize, count: usize) -> JobRequest {
    let names: Vec<_> = (first..first + count).map(|number| format!("'{}'", device(number))).collect();
    JobRequest { query_condition: format!("deviceId IN [{}]", names.join(", ")), ..request }
}

impl World {
    /// Answer the call that is out longest; whose it was.
    fn answer_first(&mut self) -> String {
        let (job, device, attempt) = self.calls.remove(0);
        let name = job.to_string();
        self.engine.handle(at(self.now), Input::Outcome { job, device, attempt, result: UPDATED });
        self.settle();
        name
    }

    fn out(&self, name: &str) -> usize {
        self.calls.iter().filter(|(job, ..)| *job == job_id(name)).count()
    }
}

#[test]
fn jobs_that_want_more_than_there_is_room_for_take_turns() {
    let mut world = World::new(60, Limits { in_flight: 6, ..limits(6, 9) });
    world.create(of(twin_job("large"), 0, 40));
    world.settle();
    assert_eq!(world.out("large"), 6);
    world.create(of(twin_job("small"), 40, 5));
    world.create(of(twin_job("other"), 50, 5));
    world.settle();
    let mut answered = Vec::new();
    while world.job("small").status == JobStatus::Running || world.job("other").status == JobStatus::Running {
        answered.push(world.answer_first());
        assert!(world.calls.len() <= 6);
    }
    // Six of the large one were out, and then each had one of three turns.
    assert!(answered.len() <= 6 + 3 * 5 + 6, "{answered:?}");
    world.is("large", JobStatus::Running, answered.len() as u64 - 10, 0);
}

#[test]
fn a_higher_priority_comes_first_among_devices_jobs_and_for_one_device() {
    let mut world = World::new(30, Limits { in_flight: 2, ..limits(2, 9) });
    world.create(of(prior("low", 1), 0, 10));
    world.settle();
    world.create(of(prior("high", 9), 10, 10));
    world.settle();
    for _ in 0..2 {
        assert_eq!(world.answer_first(), "low", "what is out is waited for");
    }
    for _ in 0..10 {
        assert_eq!(world.answer_first(), "high");
    }
    assert_eq!((world.job("high").status, world.answer_first().as_str()), (JobStatus::Completed, "low"));

    let mut world = World::new(1, Limits::default());
    for (name, priority) in [("first", 5), ("low", 1), ("high", 9), ("second", 5)] {
        world.create(prior(name, priority));
        world.settle();
    }
    let order = [(); 4].map(|()| world.answer_first());
    assert_eq!(order, ["first", "high", "second", "low"]);

    let mut world = World::new(1, limits(9, 1));
    for (name, priority) in [("first", 5), ("low", 1), ("high", 9)] {
        world.create(prior(name, priority));
    }
    world.settle();
    let order = [(); 3].map(|()| world.answer_first());
    assert_eq!(order, ["first", "high", "low"]);
}

#[test]
fn fifty_jobs_that_begin_together_end_together() {
    let mut world = World::new(200, Limits { in_flight: 32, ..limits(16, 64) });
    for number in 0..50 {
        world.create(of(twin_job(&format!("j{number}")), number * 4, 4));
    }
    world.settle();
    let mut ended = Vec::new();
    for answers in 1.. {
        if world.calls.is_empty() {
            break;
        }
        world.answer_first();
        let is_new = |name: &String| !ended.iter().any(|(other, _)| other == name);
        let all: Vec<_> = (0..50).map(|number| format!("j{number}")).filter(is_new).collect();
        let done = all.into_iter().filter(|name| world.job(name).status == JobStatus::Completed);
        ended.extend(done.map(|name| (name, answers)).collect::<Vec<_>>());
    }
    assert_eq!(ended.len(), 50);
    let late = ended.iter().filter(|(_, answers)| *answers >= 100).count();
    assert!(late >= 40, "jobs of the same size end near each other, not one after the other: {ended:?}");
}
