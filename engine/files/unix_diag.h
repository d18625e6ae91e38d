// What the kernel tells of an AF_UNIX socket over netlink, sock_diag(7).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

struct UnixDiag {
  int type = 0;      ///< SOCK_*
  int state = 0;     ///< TCP_ESTABLISHED, TCP_CLOSE, TCP_LISTEN; of datagrams only from 5.15 on.
  std::string name;  ///< As bind(2) had it, with the NUL at the end of a path; empty: unbound.
  std::uint32_t peer = 0;  ///< Inode of the connected socket; 0: none, closed, or not accepted yet.
  std::uint32_t receive_queue = 0;     ///< Bytes; of a listener, connections that wait.
  std::uint32_t send_queue = 0;        ///< Bytes; of a listener, its backlog.
  std::vector<std::uint32_t> waiting;  ///< Of a listener: clients by inode in order; 0: has closed.
  int shutdown = 0;                    ///< 1 receive, 2 send, 3 both.
};

/// Asks for the socket `file`, in its own network namespace: of many once for all.
Result<UnixDiag> AskUnixDiag(const OpenFile& file, FileDumpContext& context);

/// The socket of the tree with that inode, or null.
const OpenFile* SocketOfTree(std::uint32_t inode, FileDumpContext& context);

}  // namespace stasis::engine
