// One HTTP/2 connection (RFC 9113) over a socket that does not block: nghttp2 knows the protocol, this moves
// the bytes. All of it belongs to one thread.
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/unique_fd.h"

namespace stasis::cri {

struct HeaderField {
  std::string name;
  std::string value;
  bool never_indexed = false;  ///< RFC 7541, 6.2.3: whoever passes it on must say so, too.
};
using Headers = std::vector<HeaderField>;

class Http2Connection;

/// One stream of a connection: what is sent on it, and (by who derives from it) what came.
class Http2Stream {
 public:
  Http2Stream() = default;
  Http2Stream(const Http2Stream&) = delete;
  Http2Stream& operator=(const Http2Stream&) = delete;

  /// Not when it has not begun yet, is closed, or its connection is lost.
  bool open() const { return connection_ != nullptr; }
  /// The response's headers were sent.
  bool answered() const { return answered_; }
  /// All was sent.
  bool ended() const { return ended_; }
  const Http2Connection* connection() const { return connection_; }

  // All of these do nothing when it is not open, or is ended or reset.

  /// The response's headers; with `end` there is nothing else.
  void Respond(const Headers& headers, bool end);
  void Send(std::string_view bytes);
  /// Nothing more is sent, but these (none: no trailers).
  void End(Headers trailers);
  void Reset(std::uint32_t error);
  /// So many of the bytes that came are dealt with: the other side may send as many more.
  void Consume(std::size_t bytes);
  /// The connection is gone: as after OnClose.
  void Detach() { connection_ = nullptr; }

 protected:
  ~Http2Stream() = default;

 private:
  friend class Http2Connection;

  // These may use other connections, and this stream, but nothing of them may be destroyed in them, save a
  // closed stream in OnClose.

  /// A response's headers, or trailers. `end`: nothing follows, and OnEnd is not called.
  virtual void OnHeaders(Headers headers, bool end) = 0;
  virtual void OnData(std::string_view bytes) = 0;
  virtual void OnEnd() = 0;
  /// Of what was sent, so many bytes are on their way.
  virtual void OnSent(std::size_t bytes) = 0;
  /// Nothing happens on it any more.
  virtual void OnClose(std::uint32_t error) = 0;

  Http2Connection* connection_ = nullptr;
  std::int32_t id_ = 0;
  bool answered_ = false;
  bool ended_ = false;
  bool reset_ = false;
  std::string pending_;  // to be sent, from taken_ on
  std::size_t taken_ = 0;
  Headers trailers_;
};

class Http2Connection {
 public:
  enum class Side { kServer, kClient };

  class Owner {
   public:
    /// A request on the new stream `id`, to be taken by Attach() at once. `end`: it has no body.
    virtual void RequestCame(Http2Connection& connection, std::int32_t id, Headers headers,
                             bool end) = 0;
    /// There may be something to write: Flush() is to be called soon, not from within.
    virtual void Changed(Http2Connection& connection) = 0;
    /// The connection is over, to be destroyed soon, not from within. Its streams are told nothing.
    virtual void Over(Http2Connection& connection) = 0;

   protected:
    ~Owner() = default;
  };

  /// Over `socket`, which does not block. `owner` outlives it.
  Http2Connection(UniqueFd socket, Side side, Owner& owner);
  ~Http2Connection();
  Http2Connection(const Http2Connection&) = delete;
  Http2Connection& operator=(const Http2Connection&) = delete;

  int fd() const { return socket_.get(); }

  /// Takes what came.
  void Read();
  /// Writes what waits, as far as the socket takes it.
  void Flush();
  /// The socket took not all: Flush() again when it is writable.
  bool blocked() const { return sent_ < out_.size(); }
  bool over() const { return over_; }

  /// Begins a request. False: no stream can be opened on this connection any more. `end`: no body follows.
  bool Request(Http2Stream& stream, const Headers& headers, bool end);
  /// The other side takes no new streams (GOAWAY), or they are used up.
  bool drained() const { return drained_; }

  void Attach(std::int32_t id, Http2Stream& stream);
  /// Lets streams go on, and has new ones tried elsewhere.
  void GoAway();

  bool flush_wanted = false;  ///< Owner's.

 private:
  friend class Http2Stream;
  struct Callbacks;
  struct SessionDeleter {
    void operator()(nghttp2_session* session) const { nghttp2_session_del(session); }
  };

  void SetOver();
  void EndSent(std::int32_t id);

  UniqueFd socket_;
  const Side side_;
  Owner& owner_;
  std::unique_ptr<nghttp2_session, SessionDeleter> session_;
  Headers headers_;  // of the block that comes just now
  std::size_t header_bytes_ = 0;
  std::string out_;  // to be written, from sent_ on
  std::size_t sent_ = 0;
  bool drained_ = false;
  bool over_ = false;
};

}  // namespace stasis::cri
