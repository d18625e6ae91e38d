// stasis restore: a checkpoint becomes a running tree of processes again, on this host.
#include "engine/restore.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <memory>

#include "archive/archive.h"
#include "cmd/stasis/commands.h"
#include "engine/base/io.h"
#include "engine/image/image_io.h"

namespace stasis::cli {
namespace {

constexpr int kKilledBase = 128;  // a shell's exit code for a signal's death

struct Options {
  std::string images_dir, archive, pidfile;
  bool detach = false;
};

volatile sig_atomic_t restored_pid = 0;

// What should end or notify us is for the program that we stand for.
void Forward(int signal) {
  if (restored_pid > 0) ::kill(restored_pid, signal);
}

Result<int> ExitCodeOf(pid_t pid) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}) {
    struct sigaction action = {};
    action.sa_handler = Forward;
    ::sigaction(signal, &action, nullptr);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) {
      return SyscallError(errno, "wait for pid " + std::to_string(pid));
    }
  }
  return WIFSIGNALED(status) ? kKilledBase + WTERMSIG(status) : WEXITSTATUS(status);
}

Status WritePidfile(const std::string& path, pid_t pid) {
  // Whoever waits for the file must not read half of it.
  const std::string temporary = path + "." + std::to_string(::getpid());
  {
    ASSIGN_OR_RETURN(const UniqueFd file,
                     OpenAt(AT_FDCWD, temporary, O_WRONLY | O_CREAT | O_EXCL, 0644));
    RETURN_IF_ERROR(WriteAll(file.get(), std::to_string(pid) + "\n"));
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return SyscallError(errno, "rename to " + path);
  }
  return OkStatus();
}

Result<int> Run(const Options& options, const engine::ImageSource& source) {
  engine::RestoreRequest request;
  request.placeholder_program = PlaceholderProgram();
  ASSIGN_OR_RETURN(request.placeholder,
                   engine::SpawnPlaceholder(source, request.placeholder_program));
  {
    Progress progress("memory");
    request.progress = std::ref(progress);
    const Result<engine::RestoreReport> report = engine::Restore(request, source);
    if (!report.ok()) {
      ::kill(request.placeholder, SIGKILL);  // early failures leave it as it was
      ::waitpid(request.placeholder, nullptr, 0);
      return report.status();
    }
    for (const std::string& note : report->notes) std::fprintf(stderr, "note: %s\n", note.c_str());
  }
  restored_pid = request.placeholder;
  if (!options.pidfile.empty()) {
    if (const Status status = WritePidfile(options.pidfile, request.placeholder); !status.ok()) {
      // Nobody would find the tree.
      ::kill(request.placeholder, SIGKILL);
      ::waitpid(request.placeholder, nullptr, 0);
      return status;
    }
  }
  if (options.detach) return kOk;
  return ExitCodeOf(request.placeholder);
}

Result<int> Restore(const Options& options) {
  if (!options.archive.empty()) {
    ASSIGN_OR_RETURN(const std::unique_ptr<archive::Archive> archive,
                     archive::Archive::Open(options.archive));
    return Run(options, archive->images());
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::ImageSource> source,
                   engine::OpenDirectorySource(options.images_dir));
  return Run(options, *source);
}

}  // namespace

void AddRestore(CLI::App& program, int& exit_code) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "restore", "Restores a tree of processes, with the pids that it had, on this host.");
  CLI::Option_group* where = command->add_option_group("from", "Where the checkpoint is");
  where->add_option("--images-dir", options->images_dir, "A folder of image files");
  where->add_option("--archive", options->archive, "A checkpoint archive");
  where->require_option(1);
  command->add_flag("--detach", options->detach, "Return once it runs, do not wait for its end");
  command->add_option("--pidfile", options->pidfile, "Where the pid of its root is written");
  command->footer(
      "Without --detach the exit code is that of the restored root, or 128 + the signal that ended "
      "it.\n"
      "Example: stasis restore --archive /var/tmp/redis.tar --detach --pidfile /run/redis.pid");
  command->callback([options, &exit_code] {
    const Result<int> code = Restore(*options);
    exit_code = code.ok() ? *code : Report(code.status());
  });
}

}  // namespace stasis::cli
