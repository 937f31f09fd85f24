//! Child processes: started apart from the terminal's signals and without our secrets, watched and restarted, stopped politely, found again after their parent was killed.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{ServerError, io};

/// How long a server may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(20);
/// How long a server that ended by itself stays down.
const RESTART: Duration = Duration::from_millis(500);

/// A command for a server's program. It sees nothing of our environment, which may hold keys that the database must not know.
pub(crate) fn command(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(["PATH", "TZ", "LANG", "TMPDIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir("/");
    command
}

/// A server process that is started again when it ends by itself. Dropped, it is told to stop.
pub(crate) struct Watched {
    pid: Arc<AtomicU32>,
    polite: Signal,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Watched {
    /// Starts the process. Its output is appended to `log`, which only we can read.
    pub(crate) fn start(
        what: &'static str,
        polite: Signal,
        log: &Path,
        command: impl Fn() -> Command + Send + 'static,
    ) -> Result<Self, ServerError> {
        let log = log.to_owned();
        let spawn = move || {
            let output = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
            let mut command = tokio::process::Command::from(command());
            // A group of its own: Ctrl-C in the terminal is for us, we stop the servers in order.
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0).spawn()
        };
        let child = spawn().map_err(io(what))?;
        let pid = Arc::new(AtomicU32::new(child.id().unwrap_or(0)));
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(keep(what, polite, child, spawn, pid.clone(), stopping));
        Ok(Self { pid, polite, stop, task })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    /// Stops it and waits until it has.
    pub(crate) async fn stop(&mut self) {
        self.stop.send_replace(true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.task.is_finished() {
            self.stop.send_replace(true);
            signal(self.pid(), self.polite);
        }
    }
}

async fn keep(
    what: &'static str,
    polite: Signal,
    mut child: Child,
    spawn: impl Fn() -> std::io::Result<Child>,
    pid: Arc<AtomicU32>,
    stopping: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            status = child.wait() => {
                // Told to stop by whoever dropped us: then there is nothing left to do.
                if stop_requested(&stopping) {
                    return;
                }
                pid.store(0, Ordering::SeqCst);
                tracing::error!(server = what, ?status, "ended by itself; starting it again");
            }
            () = wait_for_stop(stopping.clone()) => {
                signal(child.id().unwrap_or(0), polite);
                if tokio::time::timeout(STOP, child.wait()).await.is_err() {
                    tracing::warn!(server = what, "does not stop; killed");
                    let _ = child.kill().await;
                }
                return;
            }
        }
        child = loop {
            if tokio::time::timeout(RESTART, wait_for_stop(stopping.clone())).await.is_ok() {
                return;
            }
            match spawn() {
                Ok(child) => break child,
                Err(error) => tracing::error!(server = what, %error, "cannot be started again"),
            }
        };
        pid.store(child.id().unwrap_or(0), Ordering::SeqCst);
    }
}

fn stop_requested(stopping: &watch::Receiver<bool>) -> bool {
    *stopping.borrow() || stopping.has_changed().is_err()
}

/// Until it is told to stop, or nobody is left to tell it.
async fn wait_for_stop(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid)
        && pid > 1
    {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn alive(pid: u32) -> bool {
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
    if let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) {
        return String::from_utf8_lossy(&line).contains(ours);
    }
    // Where there is no /proc, `ps` tells.
    let listed = Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output();
    listed.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(ours))
}

#[expect(clippy::disallowed_methods, reason = "processes have no event to wait for")]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Waits until `probe` says yes; fails when the process ends or takes too long.
pub(crate) async fn wait_up<F: Future<Output = bool>>(
    what: &'static str,
    watched: &mut Watched,
    log: PathBuf,
    mut probe: impl FnMut() -> F,
) -> Result<(), ServerError> {
    let (pid, deadline) = (watched.pid(), Instant::now() + Duration::from_secs(60));
    // Whoever has taken the port may accept and say nothing.
    while tokio::time::timeout(Duration::from_secs(2), probe()).await != Ok(true) {
        if !alive(pid) || Instant::now() > deadline {
            watched.stop().await;
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(12).collect();
            let tail = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            return Err(ServerError::NotUp { what, log: log.display().to_string(), tail });
        }
        pause(Duration::from_millis(25)).await;
    }
    Ok(())
}
