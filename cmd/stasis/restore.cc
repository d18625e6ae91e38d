// stasis restore: a checkpoint becomes a running tree of processes again, on this host.
#include "engine/restore.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "archive/archive.h"
#include "cmd/stasis/commands.h"
#include "cmd/stasis/engine_options.h"
#include "cmd/stasis/interrupts.h"
#include "cmd/stasis/log_file.h"
#include "cri/checkpoint/tmpfs_mounts.h"
#include "engine/base/io.h"
#include "engine/image/image_io.h"
#include "engine/tasks/restore_namespaces.h"

namespace stasis::cli {
namespace {

struct Options {
  std::string images_dir, archive, pidfile;
  engine::Options engine;
  LogFile log;
  bool detach = false, sibling = false;
};

Result<int> ExitCodeOf(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) {
      return SyscallError(errno, "wait for pid " + std::to_string(pid));
    }
  }
  return WIFSIGNALED(status) ? kSignalBase + WTERMSIG(status) : WEXITSTATUS(status);
}

/// Made before the restore, so that a place where no file can be is found out before anything runs.
/// Whoever waits for the file must not read half of it: it gets its name when it is whole.
class Pidfile {
 public:
  explicit Pidfile(std::string path)
      : path_(std::move(path)), temporary_(path_ + "." + std::to_string(::getpid())) {}
  Pidfile(const Pidfile&) = delete;
  Pidfile& operator=(const Pidfile&) = delete;
  ~Pidfile() {
    if (file_) ::unlink(temporary_.c_str());  // NotFound once it has its name
  }

  Status Create() {
    if (path_.empty()) return OkStatus();
    ASSIGN_OR_RETURN(file_, OpenAt(AT_FDCWD, temporary_, O_WRONLY | O_CREAT | O_EXCL, 0644));
    return OkStatus();
  }

  Status Publish(pid_t pid) {
    if (path_.empty()) return OkStatus();
    RETURN_IF_ERROR(Annotate(WriteAll(file_.get(), std::to_string(pid) + "\n"), path_));
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
      return SyscallError(errno, "rename to " + path_);
    }
    return OkStatus();
  }

 private:
  const std::string path_;
  const std::string temporary_;
  UniqueFd file_;
};

Result<int> Run(const Options& options, const engine::ImageSource& source, Interrupts& interrupts) {
  Pidfile pidfile(options.pidfile);
  RETURN_IF_ERROR(Annotate(pidfile.Create(), "the file for the pid"));
  engine::RestoreRequest request;
  request.options = options.engine;
  request.log = options.log.Hear();
  request.stop = interrupts.token();
  request.placeholder_program = PlaceholderProgram();
  request.page_server_program = PageServerProgram();
  request.fill_tmpfs = cri::FillFrom(
      source, {.devices = true, .capabilities = true},
      [](const std::string& what) { std::fprintf(stderr, "note: %s\n", OneLine(what).c_str()); });
  ASSIGN_OR_RETURN(
      request.placeholder,
      engine::SpawnPlaceholder(source, {.placeholder_program = request.placeholder_program,
                                        .root = options.engine.root,
                                        .sibling = options.sibling}));
  {
    Progress progress("memory");
    request.progress = std::ref(progress);
    const Result<engine::RestoreReport> report = engine::Restore(request, source);
    if (!report.ok()) {
      // What fails before the placeholder is seized, a pid that is taken, leaves it to us.
      ::kill(request.placeholder, SIGKILL);
      ::waitpid(request.placeholder, nullptr, 0);
      return report.status();
    }
    options.log.Warn(report->notes);
    for (const std::string& note : report->notes) {
      std::fprintf(stderr, "note: %s\n", OneLine(note).c_str());
    }
  }
  if (const Status status = pidfile.Publish(request.placeholder); !status.ok()) {
    // Nobody would find the tree.
    ::kill(request.placeholder, SIGKILL);
    ::waitpid(request.placeholder, nullptr, 0);
    return status;
  }
  if (options.detach) return kOk;
  // What should end us is for the program that we stand for.
  interrupts.PassOnTo(request.placeholder);
  return ExitCodeOf(request.placeholder);
}

Result<int> Restore(Options& options, Interrupts& interrupts) {
  RETURN_IF_ERROR(options.log.Open(options.images_dir));
  if (!options.archive.empty()) {
    ASSIGN_OR_RETURN(const std::unique_ptr<archive::Archive> archive, OpenArchive(options.archive));
    {
      Progress progress("verifying");
      RETURN_IF_ERROR(archive::CheckUnaltered(*archive, std::ref(progress)));
    }
    return Run(options, archive->images(), interrupts);
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::ImageSource> source,
                   engine::OpenDirectorySource(options.images_dir));
  return Run(options, *source, interrupts);
}

}  // namespace

void AddRestore(CLI::App& program, int& exit_code) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "restore", "Restores a tree of processes, with the pids that it had, on this host.");
  CLI::Option_group* where = command->add_option_group("from", "Where the checkpoint is");
  where->add_option("--images-dir,-D", options->images_dir, "A folder of image files");
  where->add_option("--archive", options->archive, "A checkpoint archive");
  where->require_option(1);
  command->add_flag("--detach,--restore-detached,-d", options->detach,
                    "Return once it runs, do not wait for its end");
  command
      ->add_flag("--restore-sibling,-S", options->sibling,
                 "Its parent is that of stasis, who is to wait for it")
      ->needs("--detach");
  command->add_flag("--leave-stopped,-s", options->engine.leave_stopped,
                    "It is left stopped (SIGSTOP)");
  command->add_flag("--lazy-pages", options->engine.lazy_pages,
                    "It runs at once; most of its memory is loaded while it does");
  command
      ->add_option("--root,-r", options->engine.root,
                   "Directory that becomes its root; that of a mount namespace, where it had one")
      ->option_text("DIR")
      ->check(NotEmpty());
  command
      ->add_option("--join-ns", options->engine.join_ns,
                   "A namespace that it gets: net, uts, ipc, time or mnt; may be repeated")
      ->option_text("KIND:PID|PATH")
      ->check([](const std::string& text) {
        const Status status = engine::CheckJoinNs(text);
        return status.ok() ? std::string() : Message(status);
      });
  options->engine.own_namespaces = true;
  command->add_option("--pidfile", options->pidfile, "Where the pid of its root is written");
  AddEngineOptions(*command, options->engine);
  options->log.AddOptions(*command);
  command->footer(
      "Without --detach the exit code is that of the restored root, or 128 + the signal that ended "
      "it.\n"
      "Example: stasis restore --archive /var/tmp/redis.tar --detach --pidfile /run/redis.pid");
  command->callback([options, &exit_code] {
    Interrupts interrupts;
    const Result<int> code = Restore(*options, interrupts);
    options->log.End(code.status(), "ended with " + std::to_string(code.value_or(0)));
    exit_code = code.ok() ? *code : Report(code.status());
    if (code.status().code() == StatusCode::kCancelled && interrupts.caught() != 0) {
      exit_code = kSignalBase + interrupts.caught();
    }
  });
}

}  // namespace stasis::cli
