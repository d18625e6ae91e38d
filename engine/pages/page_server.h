// Loads the memory of restored processes while they run.
#pragma once

#include <sys/types.h>

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/pages/address_space.h"
#include "engine/pages/page_protocol.h"

namespace stasis::engine::pages {

class PageServer {
 public:
  /// `socket`: to who restores. `on_process` gets the pidfd of each process of theirs, which then has been
  /// given memory that only we can fill.
  PageServer(UniqueFd socket, std::function<Status(UniqueFd pidfd)> on_process)
      : socket_(std::move(socket)), on_process_(std::move(on_process)) {}

  /// Until all is loaded, or no process is left that it could be loaded for. Cancelled: who restores ended
  /// before the programs were to run. `other_fd` becomes readable when `on_other` is to be called, which
  /// gives the next such descriptor.
  Status Run(UniqueFd other_fd, const std::function<Result<UniqueFd>()>& on_other);

 private:
  Status ReadMessages();
  Status Take(const Message& message, std::vector<UniqueFd> fds);
  Status TakeFile(UniqueFd fd, const Message& message);
  Status TakeProcess(std::vector<UniqueFd> fds);
  Status Step();
  void Await(int other_fd, bool& other) const;
  bool HasWork() const;

  UniqueFd socket_;
  const std::function<Status(UniqueFd)> on_process_;
  std::vector<PagesFile> files_;
  std::map<std::pair<dev_t, ino_t>, std::shared_ptr<const frames::FramedFile>> archives_;
  std::list<AddressSpace> spaces_;
  bool begun_ = false;
};

}  // namespace stasis::engine::pages
