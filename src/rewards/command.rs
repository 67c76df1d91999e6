//! Any program as a source of rewards: a JSON line for each answer to its standard input, a line for
//! each reward from its standard output.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Answer, Reward};
use crate::{Error, Result};

/// How a program is run.
#[derive(Clone, Debug)]
pub struct CommandOptions {
    /// What the shell runs.
    pub command: String,
    /// The longest wait for an answer.
    pub timeout: Duration,
}

/// A program that stays up and rewards: it reads `{"prompt": ..., "completion": ...}`, a line an
/// answer, and writes a line for each, in order: a number, an object with a `reward`, or `null` for
/// none. It must not keep its lines to itself until its input ends.
pub struct CommandReward {
    options: CommandOptions,
    child: Child,
    input: Sender<Vec<u8>>,
    output: Receiver<Line>,
    /// The last line that it wrote to its standard error.
    last_words: Arc<Mutex<String>>,
}

/// What the program's output was.
enum Line {
    Text(String),
    TooLong,
}

/// Bytes of a line that is read at most.
const LONGEST: u64 = 1 << 16;

/// Lines that are read before they are wanted. A program that says more waits, and is found out.
const AHEAD: usize = 16;

/// The longest wait for a program to end once its input has.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// The shortest and the longest wait for a line too many behind the last answer.
const PATIENCE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

impl CommandReward {
    /// Starts the program.
    ///
    /// # Errors
    /// [`Error::Setting`] for a timeout out of range, [`Error::Device`] where there is no shell.
    pub fn start(options: CommandOptions) -> Result<Self> {
        let failed = |e: std::io::Error| Error::Device(format!("the reward command's shell: {e}"));
        let mut command = Command::new("sh");
        command.arg("-c").arg(&options.command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for the trainer, which finishes its step with the rewards of this program.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(failed)?;
        let (input, to_write) = channel::<Vec<u8>>();
        let (lines, output) = sync_channel(AHEAD);
        let last_words = Arc::new(Mutex::new(String::new()));
        if let Some(mut stdin) = child.stdin.take() {
            thread::spawn(move || {
                // A program that does not read is met where its answers are missed.
                while let Ok(bytes) = to_write.recv() {
                    if stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
                        break;
                    }
                }
            });
        }
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                read_lines(stdout, |line| lines.send(line).is_ok());
            });
        }
        if let Some(stderr) = child.stderr.take() {
            let words = last_words.clone();
            thread::spawn(move || {
                read_lines(stderr, |line| {
                    if let (Line::Text(text), Ok(mut words)) = (line, words.lock())
                        && !text.trim().is_empty()
                    {
                        *words = shown(text.trim());
                    }
                    true
                });
            });
        }
        Ok(CommandReward { options, child, input, output, last_words })
    }

    fn error(&self, message: &str) -> Error {
        Error::Device(format!("reward command `{}`: {message}", shown(&self.options.command)))
    }

    /// The error of a line that is the answer to nothing.
    fn surplus(&self, line: &Line) -> Error {
        let said = match line {
            Line::Text(text) => shown(text),
            Line::TooLong => format!("a line of more than {LONGEST} bytes"),
        };
        self.error(&format!("expected one line an answer, got another: `{said}`"))
    }

    /// Waits for a line that should not come.
    fn expect_silence(&self, patience: Duration) -> Result<()> {
        match self.output.recv_timeout(patience) {
            Ok(line) => Err(self.surplus(&line)),
            // Whether it is still there is seen when it is asked again.
            Err(_) => Ok(()),
        }
    }

    /// The error of a program that is no more.
    fn ended(&mut self, answered: usize, asked: usize) -> Error {
        // Its output ends a moment before it does.
        let patience = Instant::now() + Duration::from_secs(2);
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status.to_string(),
                Ok(None) if Instant::now() < patience => thread::sleep(Duration::from_millis(5)),
                _ => break "its output closed".to_string(),
            }
        };
        // And so do its last words, which another thread reads.
        thread::sleep(Duration::from_millis(50));
        let words = self.last_words.lock().map(|words| words.clone()).unwrap_or_default();
        let words = if words.is_empty() { words } else { format!("; it last said: {words}") };
        self.error(&format!("ended ({status}) after {answered} of {asked} answers{words}"))
    }

    fn reward(&self, line: &str) -> Result<Option<f64>> {
        let expected = || {
            let expected = "expected a finite number, an object with a `reward`, or null, got";
            self.error(&format!("{expected} `{}`", shown(line)))
        };
        let value: Value = serde_json::from_str(line).map_err(|_| expected())?;
        let value = match &value {
            Value::Object(map) => map.get("reward").ok_or_else(expected)?,
            value => value,
        };
        match value {
            Value::Null => Ok(None),
            value => value.as_f64().filter(|x| x.is_finite()).map(Some).ok_or_else(expected),
        }
    }
}

impl Reward for CommandReward {
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<Option<f64>>> {
        // What it said unasked would shift every reward to another answer.
        if let Ok(line) = self.output.try_recv() {
            return Err(self.surplus(&line));
        }
        let begin = Instant::now();
        let question =
            |a: &Answer| format!("{}\n", json!({ "prompt": a.prompt, "completion": a.completion }));
        let questions: String = answers.iter().map(question).collect();
        if self.input.send(questions.into_bytes()).is_err() {
            return Err(self.ended(0, answers.len()));
        }
        let mut rewards = Vec::with_capacity(answers.len());
        while rewards.len() < answers.len() {
            match self.output.recv_timeout(self.options.timeout) {
                Ok(Line::Text(line)) => rewards.push(self.reward(&line)?),
                Ok(Line::TooLong) => {
                    let message = format!("expected a line of at most {LONGEST} bytes, got more");
                    return Err(self.error(&message));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let (got, asked) = (rewards.len(), answers.len());
                    let seconds = self.options.timeout.as_secs_f64();
                    return Err(self.error(&format!(
                        "no answer within {seconds} s, after {got} of {asked}: does it flush its \
                         output after every line? (--reward-timeout)"
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.ended(rewards.len(), answers.len()));
                }
            }
        }
        // A program that says too much for each answer is in the middle of it: its next line comes within
        // the time of an answer or two.
        let each = begin.elapsed() / answers.len().max(1) as u32;
        self.expect_silence((4 * each).clamp(PATIENCE[0], PATIENCE[1]))?;
        Ok(rewards)
    }

    fn finish(&mut self) -> Result<()> {
        // It ends when its input does, and what it had still to say is there.
        self.input = channel().0;
        self.expect_silence(self.options.timeout.min(LAST_PATIENCE))
    }
}

impl Drop for CommandReward {
    fn drop(&mut self) {
        // It ends when its input does; one that hangs is ended.
        self.input = channel().0;
        let patience = Instant::now() + Duration::from_millis(200);
        while Instant::now() < patience {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        // With whatever it started, which has its group.
        #[cfg(unix)]
        let _ =
            Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hands over line by line while they are taken.
fn read_lines(from: impl Read, mut take: impl FnMut(Line) -> bool) {
    let mut reader = BufReader::new(from);
    loop {
        let mut bytes = Vec::new();
        match reader.by_ref().take(LONGEST).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = bytes.last() == Some(&b'\n') || (bytes.len() as u64) < LONGEST;
        let line = match whole {
            true => Line::Text(String::from_utf8_lossy(&bytes).trim_end().to_string()),
            false => Line::TooLong,
        };
        if !take(line) {
            return;
        }
    }
}

/// A foreign text, fit for one line of an error.
fn shown(text: &str) -> String {
    const LIMIT: usize = 120;
    let mut out: String = text.chars().take(LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().nth(LIMIT).is_some() {
        out.push_str("...");
    }
    out
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn run(command: &str, times: usize) -> Result<Vec<Option<f64>>> {
        let (command, timeout) = (command.to_string(), Duration::from_secs(2));
        let mut program = CommandReward::start(CommandOptions { command, timeout })?;
        let answer = |completion| Answer {
            prompt: "Say \"it\"\n",
            completion,
            prompt_ids: &[],
            completion_ids: &[],
        };
        let answers = [answer("a b c"), answer("\u{1F600}")];
        let mut all = Vec::new();
        for round in 0..times {
            // What it says unasked takes a moment to arrive.
            thread::sleep(Duration::from_millis(if round == 0 { 0 } else { 50 }));
            all.extend(program.score(&answers)?);
        }
        Ok(all)
    }

    #[test]
    fn a_program_answers_line_by_line() {
        let lengths = "while read -r line; do echo ${#line}; done";
        let out = run(lengths, 3).unwrap();
        assert_eq!(out.len(), 6);
        assert!(out[0] == out[4] && out[0] > Some(30.0), "{out:?}");
        let objects = r#"while read -r line; do echo '{"reward": -1.5, "why": "so"}'; done"#;
        assert_eq!(run(objects, 1).unwrap(), [Some(-1.5); 2]);
        assert_eq!(run("while read -r l; do echo null; done", 1).unwrap(), [None, None]);
    }

    #[test]
    fn what_goes_wrong_is_one_line() {
        for (command, says) in [
            ("no-such-program-here", "ended (exit status: 127) after 0 of 2 answers; it last"),
            (
                "read -r l; echo 1; echo oh no >&2; exit 3",
                "3) after 1 of 2 answers; it last said: oh",
            ),
            ("read -r l; echo 1; kill -9 $$", "ended (signal: 9"),
            ("while read -r l; do echo good; done", "null, got `good`"),
            ("while read -r l; do echo NaN; done", "expected a finite number"),
            ("while read -r l; do echo 1e999; done", "expected a finite number"),
            ("while read -r l; do echo '[1]'; done", "got `[1]`"),
            ("while read -r l; do echo '{\"score\": 1}'; done", "an object with a `reward`"),
            ("head -c 200000 /dev/zero; sleep 5", "a line of at most 65536 bytes"),
            ("cat > /dev/null", "no answer within 2 s, after 0 of 2"),
            ("exec 1>&-; sleep 0.1", "after 0 of 2 answers"),
        ] {
            let error = run(command, 1).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{command}: {error}");
        }
    }

    #[test]
    fn a_line_too_many_is_an_error_at_once() {
        for command in [
            "while read -r l; do echo 1; echo 2; done",
            "while read -r l; do sleep 0.05; echo 1; echo 2; done",
            "read -r l; read -r l; echo 1; echo 2; echo 3; sleep 5",
            // Without an end.
            "read -r l; yes 1",
        ] {
            let error = run(command, 1).unwrap_err().to_string();
            assert!(
                error.contains("expected one line an answer, got another"),
                "{command}: {error}"
            );
        }
        // Too late for the wait behind the last answer, in time for the end.
        let (timeout, late) = (Duration::from_secs(2), "read -r l; echo 1; sleep 0.3; echo 2");
        let mut program =
            CommandReward::start(CommandOptions { command: late.into(), timeout }).unwrap();
        let answer = Answer { prompt: "", completion: "", prompt_ids: &[], completion_ids: &[] };
        assert_eq!(program.score(&[answer]).unwrap(), [Some(1.0)]);
        assert!(program.finish().unwrap_err().to_string().contains("got another: `2`"));
        let quiet = "while read -r l; do echo 1; done";
        let mut program =
            CommandReward::start(CommandOptions { command: quiet.into(), timeout }).unwrap();
        assert_eq!(program.score(&[answer; 40]).unwrap().len(), 40);
        let begin = Instant::now();
        program.finish().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let begin = Instant::now();
        assert!(run("sleep 100", 1).is_err());
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
