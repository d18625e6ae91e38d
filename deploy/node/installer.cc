#include "deploy/node/installer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "deploy/node/kernel.h"
#include "deploy/node/plan.h"
#include "deploy/node/release.h"
#include "engine/base/io.h"

namespace stasis::node {
namespace {

constexpr std::chrono::seconds kPatience{180};  // k3s on a small machine needs a minute
const std::string kSocket = "/run/stasis/stasis.sock";
// Ours by name, so that they go even when a kill kept them from being noted.
constexpr std::array kOwnFolders = {"/var/lib/stasis", "/var/lib/stasis/node", "/etc/stasis",
                                    "/opt/stasis", kReleases};

const std::string kLockFile = std::string(kJournalFolder) + "/lock";

// NotFound: the file, or its folder, was taken away while it was waited for.
Result<UniqueFd> LockOnce(const NodeFiles& files) {
  RETURN_IF_ERROR(files.MakeFolders(kLockFile));
  ASSIGN_OR_RETURN(const std::string place, files.Place(kLockFile, false));
  ASSIGN_OR_RETURN(UniqueFd lock, OpenAt(AT_FDCWD, place, O_RDWR | O_CREAT | O_NOFOLLOW, 0600));
  while (::flock(lock.get(), LOCK_EX) != 0) {
    const int error = errno;
    if (error != EINTR) return SyscallError(error, "lock " + kLockFile);
  }
  struct stat held{}, there{};
  if (::fstat(lock.get(), &held) != 0 || ::lstat(place.c_str(), &there) != 0 ||
      held.st_dev != there.st_dev || held.st_ino != there.st_ino) {
    return SyscallError(ENOENT, "lock " + kLockFile);
  }
  return lock;
}

// One stasis-node at a time. systemd may start a bypass while an installation waits for the kubelet, and an
// uninstallation takes the file away that others wait for: a lock on that one keeps nobody out any more.
Result<UniqueFd> Lock(const NodeFiles& files) {
  constexpr int kTries = 100;
  Result<UniqueFd> lock = LockOnce(files);
  for (int tries = 1; tries < kTries && ErrnoOf(lock.status()) == ENOENT; ++tries) {
    lock = LockOnce(files);
  }
  return lock;
}

Status Connects(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return InvalidArgument(path + " is too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    return Annotate(SyscallError(error, "connect " + path),
                    "the kubelet's socket is not there; see systemctl status stasisd.socket");
  }
  return OkStatus();
}

// Changes of `old` that `plan` has no more: its files are those of another distribution or release.
std::vector<Change> Obsolete(const Journal& old, const Journal& plan) {
  std::vector<Change> obsolete;
  for (const Change& change : old.changes) {
    if (plan.Find(change.path) == nullptr) obsolete.push_back(change);
  }
  return obsolete;
}

// Whether `plan` gives the agent nothing that it did not have already.
bool SameAgent(const Journal& old, const Journal& plan) {
  return old.release == plan.release &&
         std::all_of(plan.changes.begin(), plan.changes.end(), [&old](const Change& change) {
           const Change* before = old.Find(change.path);
           return change.sends_kubelet || (before != nullptr && Same(before->after, change.after));
         });
}

Result<bool> AsPlanned(const NodeFiles& files, const Journal& plan) {
  for (const Change& change : plan.changes) {
    ASSIGN_OR_RETURN(const MaybeContent now, files.Read(change.path, change.FollowsLinks()));
    if (!Same(now, change.after)) return false;
  }
  return true;
}

}  // namespace

Status Installer::Install(const InstallRequest& request) {
  // Refused before anything of ours is there.
  if (!services_.offline()) RETURN_IF_ERROR(CheckKernel());
  ASSIGN_OR_RETURN(const Journal before, LoadJournal(files_));
  RETURN_IF_ERROR(MakePlan(files_, request, before).status());

  ASSIGN_OR_RETURN(const UniqueFd lock, Lock(files_));
  ASSIGN_OR_RETURN(const Journal old, LoadJournal(files_));
  ASSIGN_OR_RETURN(Journal plan, MakePlan(files_, request, old));
  if (old.phase != Phase::kAbsent) RETURN_IF_ERROR(PutCredentials(request));  // renewed ones
  if (old.phase == Phase::kBypassed && SameAgent(old, plan) && !request.again) {
    return FailedPrecondition("the kubelet goes around stasisd (" + old.reason +
                              "); mend that, then run: stasis-node install");
  }
  ASSIGN_OR_RETURN(const bool as_planned, AsPlanned(files_, plan));
  if (old.phase == Phase::kInstalled && old.release == plan.release && as_planned &&
      Obsolete(old, plan).empty()) {
    return OkStatus();
  }
  return Carry(request, old, std::move(plan));
}

Status Installer::Carry(const InstallRequest& request, const Journal& old, Journal plan) {
  report_("installing for " + plan.distribution + " (" + plan.service + ".service), runtime " +
          plan.runtime_endpoint);
  const std::vector<Change> obsolete = Obsolete(old, plan);
  Journal noted = plan;
  noted.changes.insert(noted.changes.end(), obsolete.begin(), obsolete.end());
  RETURN_IF_ERROR(SaveJournal(files_, noted));
  RETURN_IF_ERROR(CopyRelease(files_, request.release));
  RETURN_IF_ERROR(PutCredentials(request));

  bool agent_changed = false, kubelet_changed = false;
  RETURN_IF_ERROR(Apply(plan, false, agent_changed));
  Status ready = OkStatus();
  if (agent_changed || old.phase != Phase::kInstalled) ready = StartAgent();
  // Also before a repair that changes the kubelet's side alone: the agent may have ended meanwhile.
  if (ready.ok()) ready = ProbeAgent(request);
  if (!ready.ok()) {
    ready = Annotate(ready,
                     "stasisd does not answer for the runtime, so the kubelet is not sent to it");
    // An installation that never sent the kubelet to us has nothing to send back.
    (void)SendBack(noted, Message(ready));  // already reporting worse
    return ready;
  }
  RETURN_IF_ERROR(Apply(plan, true, kubelet_changed));
  for (const Change& change : obsolete) {
    RETURN_IF_ERROR(Undo(change, kubelet_changed));
  }
  if (kubelet_changed || old.phase != Phase::kInstalled) {
    RETURN_IF_ERROR(services_.Systemctl({"daemon-reload"}));
    report_(Restart() + plan.service + ".service");
    if (const Status steady = services_.RestartSteadily(plan.service, kPatience); !steady.ok()) {
      (void)SendBack(noted, Message(steady));  // already reporting worse
      return steady;
    }
  }
  plan.phase = Phase::kInstalled;
  RETURN_IF_ERROR(SaveJournal(files_, plan));
  RemoveReleasesBut(files_, {plan.release, old.release});
  report_("installed: the kubelet talks to stasisd");
  return OkStatus();
}

std::string Installer::Restart() const {
  return services_.offline() ? "to be restarted by you (--offline): " : "restarting ";
}

Status Installer::PutCredentials(const InstallRequest& request) const {
  for (const Credential& credential : request.credentials) {
    ASSIGN_OR_RETURN(const MaybeContent now, files_.Read(credential.path));
    if (Same(now, credential.content)) continue;
    if (credential.content) RETURN_IF_ERROR(files_.MakeFolders(credential.path));
    RETURN_IF_ERROR(files_.Put(credential.path, credential.content));
  }
  return OkStatus();
}

Status Installer::StartAgent() const {
  RETURN_IF_ERROR(services_.Systemctl({"daemon-reload"}));
  (void)services_.Systemctl(
      {"reset-failed", "stasisd.socket", "stasisd.service"});  // none had failed
  RETURN_IF_ERROR(services_.Systemctl({"start", "stasisd.socket"}));
  // The socket stays open meanwhile: who connects now waits for the new agent.
  return services_.Systemctl({"restart", "stasisd.service"});
}

Status Installer::ProbeAgent(const InstallRequest& request) const {
  if (services_.offline()) return OkStatus();
  const std::string programs = request.release.empty() ? "/usr/bin" : request.release + "/bin";
  return RunProgram(
             {programs + "/stasisd", "--probe", "--listen", "unix://" + files_.Here(kSocket)})
      .status();
}

Status Installer::Apply(const Journal& journal, bool sends_kubelet, bool& changed) const {
  for (const Change& change : journal.changes) {
    if (change.sends_kubelet != sends_kubelet) continue;
    ASSIGN_OR_RETURN(const MaybeContent now, files_.Read(change.path, change.FollowsLinks()));
    if (Same(now, change.after)) continue;
    RETURN_IF_ERROR(files_.MakeFolders(change.path));
    RETURN_IF_ERROR(files_.Put(change.path, change.after));
    changed = true;
  }
  return OkStatus();
}

Status Installer::Undo(const Change& change, bool& changed) const {
  const bool follow = change.FollowsLinks();
  ASSIGN_OR_RETURN(const MaybeContent now, files_.Read(change.path, follow));
  if (Same(now, change.before) || (!now && change.syntax != Syntax::kFile)) return OkStatus();
  MaybeContent wanted = change.before;
  if (now && !Same(now, change.after)) {
    report_(change.path + " was changed by somebody else; only what is ours is taken out");
    ASSIGN_OR_RETURN(wanted, WithoutUs(change, *now));
    if (Same(now, wanted)) return OkStatus();
  }
  changed = true;
  return files_.Put(change.path, wanted);
}

Status Installer::UndoAll(const Journal& journal, bool sends_kubelet, bool& changed) const {
  for (auto change = journal.changes.rbegin(); change != journal.changes.rend(); ++change) {
    if (change->sends_kubelet != sends_kubelet) continue;
    RETURN_IF_ERROR(Undo(*change, changed));
  }
  return OkStatus();
}

Status Installer::SendBack(Journal& journal, const std::string& reason) {
  bool changed = false;
  RETURN_IF_ERROR(UndoAll(journal, true, changed));
  // What never was whole is tried again by itself; what was, waits for somebody to mend it.
  if (!changed && journal.phase == Phase::kInstalling) return OkStatus();
  journal.phase = Phase::kBypassed;
  journal.reason = reason;
  RETURN_IF_ERROR(SaveJournal(files_, journal));
  // Also when its configuration was its own already: who put that back may have been killed before this, and
  // the kubelet that runs would go on with our socket.
  report_("the kubelet is sent back to " + journal.runtime_endpoint);
  RETURN_IF_ERROR(services_.Systemctl({"daemon-reload"}));
  return services_.Systemctl({"restart", "--no-block", journal.service + ".service"});
}

Status Installer::Bypass(const std::string& reason) {
  ASSIGN_OR_RETURN(const UniqueFd lock, Lock(files_));
  ASSIGN_OR_RETURN(Journal journal, LoadJournal(files_));
  if (journal.phase == Phase::kAbsent) {
    RemoveOwnFolders();
    return NotFound("nothing is installed here; the kubelet's configuration is its own");
  }
  return SendBack(journal, reason);
}

Status Installer::RestartWithItsRuntime(const Journal& journal) const {
  RETURN_IF_ERROR(services_.Systemctl({"daemon-reload"}));
  // Whether or not a file has changed: a bypass or uninstallation that was killed may have changed it, and the
  // socket that the kubelet still has goes away afterwards.
  report_(Restart() + journal.service + ".service with " + journal.runtime_endpoint);
  const Status steady = services_.RestartSteadily(journal.service, kPatience);
  if (steady.code() == StatusCode::kDeadlineExceeded) {
    report_(Message(steady) + "; its configuration is as it was, so going on");
    return OkStatus();
  }
  if (steady.ok()) return steady;
  return Annotate(steady,
                  "the kubelet that runs may still use stasisd, which is left to it; restart " +
                      journal.service + ".service, then run again: stasis-node uninstall");
}

Status Installer::Uninstall() {
  ASSIGN_OR_RETURN(const UniqueFd lock, Lock(files_));
  ASSIGN_OR_RETURN(Journal journal, LoadJournal(files_));
  if (journal.phase == Phase::kAbsent) {
    RemoveOwnFolders();
    return OkStatus();
  }
  journal.phase = Phase::kUninstalling;
  RETURN_IF_ERROR(SaveJournal(files_, journal));

  bool changed = false;
  RETURN_IF_ERROR(UndoAll(journal, true, changed));
  RETURN_IF_ERROR(RestartWithItsRuntime(journal));
  RETURN_IF_ERROR(services_.Systemctl({"stop", "stasisd.socket", "stasisd.service"}));
  RETURN_IF_ERROR(UndoAll(journal, false, changed));
  RETURN_IF_ERROR(services_.Systemctl({"daemon-reload"}));
  if (!journal.release.empty()) RemoveReleases(files_);
  RemoveFolders(journal.made_folders);  // while the journal still knows them
  RETURN_IF_ERROR(RemoveJournal(files_));
  RemoveOwnFolders();
  report_("uninstalled: the node is as it was");
  return OkStatus();
}

void Installer::RemoveFolders(const std::vector<std::string>& uppermost_first) const {
  std::for_each(uppermost_first.rbegin(), uppermost_first.rend(),
                [this](const std::string& folder) { files_.RemoveEmptyFolder(folder); });
}

void Installer::RemoveOwnFolders() const {
  (void)files_.Put(kLockFile, std::nullopt);  // by its holder alone; see Lock
  RemoveFolders({kOwnFolders.begin(), kOwnFolders.end()});
}

Result<Journal> Installer::Look() const {
  ASSIGN_OR_RETURN(Journal journal, LoadJournal(files_));
  if (journal.phase != Phase::kInstalled) return journal;
  for (const Change& change : journal.changes) {
    ASSIGN_OR_RETURN(const MaybeContent now, files_.Read(change.path, change.FollowsLinks()));
    if (Same(now, change.after)) continue;
    return FailedPrecondition(change.path +
                              " is not as it was installed; run: stasis-node install");
  }
  if (services_.offline()) return journal;
  RETURN_IF_ERROR(Connects(files_.Here(kSocket)));
  // What the agent lacks although it serves the kubelet, like its API.
  ASSIGN_OR_RETURN(const std::string lacks, services_.Show("stasisd", "StatusText"));
  if (!lacks.empty()) return FailedPrecondition("stasisd serves the kubelet, but " + lacks);
  return journal;
}

}  // namespace stasis::node
