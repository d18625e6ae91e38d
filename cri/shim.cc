#include "cri/shim.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <thread>
#include <utility>

#include "cri/checkpoint/checkpointer.h"
#include "cri/proxy/server.h"
#include "cri/proxy/upstream.h"
#include "cri/restore/restorer.h"
#include "cri/restore/shown.h"
#include "engine/base/io.h"

namespace stasis::cri {
namespace {

Result<UniqueFd> LockStateDirectory(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return SyscallError(error.value(), "create the state directory " + directory);
  std::filesystem::permissions(directory, std::filesystem::perms::owner_all, error);
  if (error) return SyscallError(error.value(), "chmod " + directory);
  ASSIGN_OR_RETURN(UniqueFd lock, OpenAt(AT_FDCWD, directory + "/lock", O_RDWR | O_CREAT, 0600));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    const int failure = errno;
    if (failure == EWOULDBLOCK) {
      return AlreadyExists("another stasisd uses the state directory " + directory +
                           "; stop it or use another --state-dir");
    }
    return SyscallError(failure, "lock " + directory);
  }
  return lock;
}

class RunningShim : public Shim {
 public:
  RunningShim(UniqueFd lock, std::unique_ptr<Upstream> upstream, std::unique_ptr<Records> records,
              const ShimOptions& options)
      : lock_(std::move(lock)),
        upstream_(std::move(upstream)),
        records_(std::move(records)),
        activity_(options.events),
        restorer_(*upstream_, *records_, locks_, activity_, options.restore),
        checkpointer_(*upstream_, *records_, locks_, activity_, options.checkpoint, options.limits,
                      options.compression) {}

  Status Serve(const std::string& endpoint) {
    MethodTable table;
    AddShownFilters(*records_, table);
    restorer_.AddTo(table);
    checkpointer_.AddTo(table);
    ASSIGN_OR_RETURN(Listener listener, Listen(endpoint));
    ASSIGN_OR_RETURN(server_, Server::Start(std::move(listener), *upstream_, std::move(table),
                                            activity_.forwarded()));
    recovery_ = std::jthread([this](const std::stop_token& stop) { restorer_.Recover(stop); });
    return OkStatus();
  }

  Agent& agent() override { return agent_; }

  void Shutdown(std::chrono::milliseconds grace) override {
    recovery_.request_stop();
    server_->Shutdown(grace);
  }

 private:
  UniqueFd lock_;
  std::unique_ptr<Upstream> upstream_;
  std::unique_ptr<Records> records_;
  KeyedLocks locks_;
  Activity activity_;
  Restorer restorer_;
  Checkpointer checkpointer_;
  Agent agent_{*upstream_, checkpointer_, activity_};
  std::unique_ptr<Server> server_;
  std::jthread recovery_;
};

// Found missing now, not at the first restore.
Status CheckProgram(const std::string& path, const char* what) {
  if (::access(path.c_str(), X_OK) == 0) return OkStatus();
  const int error = errno;
  return Annotate(SyscallError(error, path), what);
}

}  // namespace

Result<std::unique_ptr<Shim>> Shim::Start(const ShimOptions& options) {
  ASSIGN_OR_RETURN(UniqueFd lock, LockStateDirectory(options.state_dir));
  RETURN_IF_ERROR(
      CheckProgram(options.restore.placeholder, "the placeholder program, see --placeholder"));
  RETURN_IF_ERROR(CheckProgram(options.restore.page_server, "the page server, see --page-server"));
  ASSIGN_OR_RETURN(std::unique_ptr<Records> records,
                   Records::Open(options.state_dir + "/containers"));
  ASSIGN_OR_RETURN(std::unique_ptr<Upstream> upstream, Upstream::Open(options.runtime_endpoint));
  auto shim = std::make_unique<RunningShim>(std::move(lock), std::move(upstream),
                                            std::move(records), options);
  RETURN_IF_ERROR(shim->Serve(options.listen));
  return std::unique_ptr<Shim>(std::move(shim));
}

}  // namespace stasis::cri
