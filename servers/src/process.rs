//! Child processes: started apart from the terminal's signals, watched and restarted, stopped politely, found again after their parent was killed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{ServerError, io};

/// How long a server may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(20);

/// A server process that is started again when it ends by itself.
pub(crate) struct Watched {
    what: &'static str,
    pid: Arc<AtomicU32>,
    stopping: Arc<AtomicBool>,
    polite: Signal,
    ended: Option<oneshot::Receiver<()>>,
    task: JoinHandle<()>,
}

impl Watched {
    /// Starts the process. Its output is appended to `log`.
    pub(crate) fn start(
        what: &'static str,
        polite: Signal,
        log: &Path,
        command: impl Fn() -> Command + Send + 'static,
    ) -> Result<Self, ServerError> {
        let spawn = {
            let log = log.to_owned();
            move || {
                let output = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
                // A group of its own: Ctrl-C in the terminal is for us, we stop the servers in order.
                command().stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0).spawn()
            }
        };
        let mut child = spawn().map_err(io(what))?;
        let pid = Arc::new(AtomicU32::new(child.id().unwrap_or(0)));
        let stopping = Arc::new(AtomicBool::new(false));
        let (done, ended) = oneshot::channel();
        let task = tokio::spawn({
            let (pid, stopping) = (pid.clone(), stopping.clone());
            async move {
                loop {
                    let status = child.wait().await;
                    if stopping.load(Ordering::SeqCst) {
                        break;
                    }
                    tracing::error!(server = what, ?status, "ended by itself; starting it again");
                    pause(Duration::from_millis(500)).await;
                    match spawn() {
                        Ok(next) => {
                            pid.store(next.id().unwrap_or(0), Ordering::SeqCst);
                            child = next;
                        }
                        Err(error) => tracing::error!(server = what, %error, "cannot be started again"),
                    }
                }
                let _ = done.send(());
            }
        });
        Ok(Self { what, pid, stopping, polite, ended: Some(ended), task })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    /// Whether it is running right now.
    pub(crate) fn is_running(&self) -> bool {
        alive(self.pid())
    }

    pub(crate) async fn stop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        signal(self.pid(), self.polite);
        if let Some(ended) = self.ended.take()
            && tokio::time::timeout(STOP, ended).await.is_err()
        {
            tracing::warn!(server = self.what, "does not stop; killed");
            signal(self.pid(), Signal::SIGKILL);
        }
        self.task.abort();
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid)
        && pid > 1
    {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

pub(crate) fn alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| pid > 1 && kill(Pid::from_raw(pid), None).is_ok()) && !is_zombie(pid)
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

/// Stops a server that an earlier run, killed before it could do so, has left behind. The pid file's number may belong to somebody else by now, so the process must also
/// look like ours.
pub(crate) async fn stop_left_over(what: &'static str, pid_file: &Path, ours: &str, polite: Signal) {
    let Some(pid) = std::fs::read_to_string(pid_file).ok().and_then(|text| text.lines().next()?.trim().parse::<u32>().ok()) else { return };
    if !alive(pid) || !looks_like(pid, ours) {
        return;
    }
    tracing::info!(server = what, pid, "stopping the one that an earlier run left behind");
    signal(pid, polite);
    let deadline = Instant::now() + STOP;
    while alive(pid) {
        if Instant::now() > deadline {
            signal(pid, Signal::SIGKILL);
        }
        pause(Duration::from_millis(20)).await;
    }
}

fn looks_like(pid: u32, ours: &str) -> bool {
    match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) => String::from_utf8_lossy(&line).contains(ours),
        // Where there is no /proc, `ps` tells.
        Err(_) => std::process::Command::new("ps")
            .args(["-o", "command=", "-p", &pid.to_string()])
            .output()
            .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(ours)),
    }
}

#[expect(clippy::disallowed_methods, reason = "processes have no event to wait for")]
pub(crate) async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Waits until `probe` says yes; fails when the process ends or takes too long.
pub(crate) async fn wait_up<F: Future<Output = bool>>(
    what: &'static str,
    watched: &mut Watched,
    log: PathBuf,
    mut probe: impl FnMut() -> F,
) -> Result<(), ServerError> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !probe().await {
        if !watched.is_running() || Instant::now() > deadline {
            watched.stop().await;
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(12).collect();
            return Err(ServerError::NotUp {
                what,
                log: log.display().to_string(),
                tail: lines.into_iter().rev().collect::<Vec<_>>().join("\n"),
            });
        }
        pause(Duration::from_millis(25)).await;
    }
    Ok(())
}
