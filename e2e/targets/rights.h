// Descriptors in messages of unix(7) sockets (SCM_RIGHTS).
#pragma once

#include <sys/socket.h>

#include <cstring>
#include <string>
#include <vector>

#include "target.h"

namespace target {

inline void SendRights(int via, const char* text, const std::vector<int>& rights) {
  iovec part = {const_cast<char*>(text), strlen(text)};
  alignas(cmsghdr) char control[256] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(rights.size() * sizeof(int));
  cmsghdr* const head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(rights.size() * sizeof(int));
  memcpy(CMSG_DATA(head), rights.data(), rights.size() * sizeof(int));
  CHECK_EQ(sendmsg(via, &message, 0), strlen(text));
}

/// The descriptors that come with `text`, read at once with at most `limit` bytes.
inline std::vector<int> ReceiveRights(int fd, const std::string& text, int flags,
                                      size_t limit = 64) {
  char bytes[64];
  iovec part = {bytes, limit};
  alignas(cmsghdr) char control[256] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  CHECK_EQ(recvmsg(fd, &message, flags), text.size());
  CHECK(text == std::string(bytes, text.size()));
  std::vector<int> rights;
  const cmsghdr* const head = CMSG_FIRSTHDR(&message);
  if (head == nullptr) return rights;
  CHECK_EQ(head->cmsg_type, SCM_RIGHTS);
  rights.resize((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
  memcpy(rights.data(), CMSG_DATA(head), rights.size() * sizeof(int));
  return rights;
}

}  // namespace target
