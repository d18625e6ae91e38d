#include "cri/proxy/http2.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <new>
#include <utility>

#include "cri/proxy/limits.h"

namespace stasis::cri {
namespace {

// What one stream may have on its way through us; a slow reader slows its writer beyond that.
constexpr std::int32_t kStreamWindow = 256 << 10;
// Of all streams together. It is given back as bytes come, so that one stream does not stop the others.
constexpr std::int32_t kConnectionWindow = 16 << 20;
constexpr std::size_t kPiece = std::size_t{64} << 10;
// RST_STREAMs that a client may send at once and then a second, beyond which nghttp2 takes it for an attacker and
// closes the connection: no limit for us, whose clients are root, and give up hundreds of calls on a slow node.
constexpr std::uint64_t kAnyNumber = std::uint64_t{1} << 40;

// The bytes stay where they are until nghttp2 has copied them, which it does at once.
std::vector<nghttp2_nv> Fields(const Headers& headers) {
  std::vector<nghttp2_nv> fields;
  fields.reserve(headers.size());
  for (const HeaderField& field : headers) {
    // const_cast: nghttp2_nv serves both ways; what is submitted is not written to.
    const auto bytes = [](const std::string& text) {
      return reinterpret_cast<std::uint8_t*>(const_cast<char*>(text.data()));
    };
    fields.push_back({bytes(field.name), bytes(field.value), field.name.size(), field.value.size(),
                      static_cast<std::uint8_t>(field.never_indexed ? NGHTTP2_NV_FLAG_NO_INDEX
                                                                    : NGHTTP2_NV_FLAG_NONE)});
  }
  return fields;
}

bool EndsStream(const nghttp2_frame* frame) {
  return (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
}

}  // namespace

struct Http2Connection::Callbacks {
  static Http2Stream* StreamOf(nghttp2_session* session, std::int32_t id) {
    return static_cast<Http2Stream*>(nghttp2_session_get_stream_user_data(session, id));
  }

  static int BeginHeaders(nghttp2_session* /*session*/, const nghttp2_frame* /*frame*/,
                          void* user) {
    auto& self = *static_cast<Http2Connection*>(user);
    self.headers_.clear();
    self.header_bytes_ = 0;
    return 0;
  }

  static int Header(nghttp2_session* /*session*/, const nghttp2_frame* /*frame*/,
                    const std::uint8_t* name, std::size_t name_size, const std::uint8_t* value,
                    std::size_t value_size, std::uint8_t flags, void* user) {
    auto& self = *static_cast<Http2Connection*>(user);
    self.header_bytes_ += name_size + value_size;
    if (self.header_bytes_ > kMaxMetadataBytes) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    self.headers_.push_back({{reinterpret_cast<const char*>(name), name_size},
                             {reinterpret_cast<const char*>(value), value_size},
                             (flags & NGHTTP2_NV_FLAG_NO_INDEX) != 0});
    return 0;
  }

  static int FrameReceived(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    auto& self = *static_cast<Http2Connection*>(user);
    const bool end = EndsStream(frame);
    if (frame->hd.type == NGHTTP2_GOAWAY) {
      self.drained_ = true;
    } else if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
      self.owner_.RequestCame(self, frame->hd.stream_id, std::exchange(self.headers_, {}), end);
    } else if (frame->hd.type == NGHTTP2_HEADERS) {
      Http2Stream* stream = StreamOf(session, frame->hd.stream_id);
      if (stream != nullptr) stream->OnHeaders(std::exchange(self.headers_, {}), end);
    } else if (frame->hd.type == NGHTTP2_DATA && end) {
      Http2Stream* stream = StreamOf(session, frame->hd.stream_id);
      if (stream != nullptr) stream->OnEnd();
    }
    return 0;
  }

  static int DataReceived(nghttp2_session* session, std::uint8_t /*flags*/, std::int32_t id,
                          const std::uint8_t* bytes, std::size_t size, void* /*user*/) {
    nghttp2_session_consume_connection(session, size);
    Http2Stream* stream = StreamOf(session, id);
    if (stream != nullptr) {
      stream->OnData({reinterpret_cast<const char*>(bytes), size});
    } else {
      nghttp2_session_consume_stream(session, id, size);
    }
    return 0;
  }

  static int StreamClosed(nghttp2_session* session, std::int32_t id, std::uint32_t error,
                          void* /*user*/) {
    Http2Stream* stream = StreamOf(session, id);
    if (stream == nullptr) return 0;
    stream->Detach();
    stream->OnClose(error);
    return 0;
  }

  static int FrameSent(nghttp2_session* /*session*/, const nghttp2_frame* frame, void* user) {
    const bool ends = frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS;
    if (ends && EndsStream(frame))
      static_cast<Http2Connection*>(user)->EndSent(frame->hd.stream_id);
    return 0;
  }

  static ssize_t TakeData(nghttp2_session* session, std::int32_t id, std::uint8_t* buffer,
                          std::size_t size, std::uint32_t* flags, nghttp2_data_source* source,
                          void* /*user*/) {
    auto& stream = *static_cast<Http2Stream*>(source->ptr);
    const std::size_t taken = std::min(size, stream.pending_.size() - stream.taken_);
    if (stream.reset_ || (taken == 0 && !stream.ended_)) return NGHTTP2_ERR_DEFERRED;
    std::copy_n(stream.pending_.data() + stream.taken_, taken, buffer);
    stream.taken_ += taken;
    if (stream.taken_ == stream.pending_.size()) {
      stream.pending_.clear();
      stream.taken_ = 0;
      if (stream.ended_) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (!stream.trailers_.empty()) {
          *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
          const std::vector<nghttp2_nv> fields = Fields(stream.trailers_);
          if (nghttp2_submit_trailer(session, id, fields.data(), fields.size()) != 0) {
            return NGHTTP2_ERR_CALLBACK_FAILURE;
          }
        }
      }
    }
    if (taken > 0) stream.OnSent(taken);
    return static_cast<ssize_t>(taken);
  }

  static nghttp2_session_callbacks* All() {
    nghttp2_session_callbacks* all = nullptr;
    if (nghttp2_session_callbacks_new(&all) != 0) throw std::bad_alloc();
    nghttp2_session_callbacks_set_on_begin_headers_callback(all, BeginHeaders);
    nghttp2_session_callbacks_set_on_header_callback(all, Header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(all, FrameReceived);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(all, DataReceived);
    nghttp2_session_callbacks_set_on_stream_close_callback(all, StreamClosed);
    nghttp2_session_callbacks_set_on_frame_send_callback(all, FrameSent);
    return all;
  }

  static nghttp2_option* Options() {
    nghttp2_option* options = nullptr;
    if (nghttp2_option_new(&options) != 0) throw std::bad_alloc();
    // Consume() gives room back, when the bytes are through.
    nghttp2_option_set_no_auto_window_update(options, 1);
    // What a header may hold is for the two ends to say.
    nghttp2_option_set_no_http_messaging(options, 1);
    nghttp2_option_set_max_send_header_block_length(options, kMaxMetadataBytes);
    nghttp2_option_set_stream_reset_rate_limit(options, kAnyNumber, kAnyNumber);
    return options;
  }
};

Http2Connection::Http2Connection(UniqueFd socket, Side side, Owner& owner)
    : socket_(std::move(socket)), side_(side), owner_(owner) {
  static nghttp2_session_callbacks* const kCallbacks = Callbacks::All();
  static nghttp2_option* const kOptions = Callbacks::Options();
  nghttp2_session* session = nullptr;
  const auto make =
      side == Side::kServer ? nghttp2_session_server_new2 : nghttp2_session_client_new2;
  if (make(&session, kCallbacks, this, kOptions) != 0) throw std::bad_alloc();
  session_.reset(session);
  std::vector<nghttp2_settings_entry> settings = {
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kStreamWindow},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, kMaxMetadataBytes}};
  if (side == Side::kClient) settings.push_back({NGHTTP2_SETTINGS_ENABLE_PUSH, 0});
  nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings.data(), settings.size());
  nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, kConnectionWindow);
}

Http2Connection::~Http2Connection() = default;

void Http2Connection::SetOver() {
  if (!std::exchange(over_, true)) owner_.Over(*this);
}

void Http2Connection::Read() {
  static thread_local std::array<std::uint8_t, kPiece> piece;
  while (!over_) {
    const ssize_t got = ::recv(socket_.get(), piece.data(), piece.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (got <= 0) return SetOver();
    const auto size = static_cast<std::size_t>(got);
    if (nghttp2_session_mem_recv(session_.get(), piece.data(), size) < 0) {
      Flush();  // nghttp2 has a GOAWAY with the reason ready for some errors
      return SetOver();
    }
    if (size < piece.size()) break;  // the rest, if any, is told by another event
  }
  owner_.Changed(*this);
}

void Http2Connection::Flush() {
  while (!over_) {
    if (sent_ == out_.size()) {
      out_.clear();
      sent_ = 0;
      while (out_.size() < kPiece) {
        const std::uint8_t* bytes = nullptr;
        const ssize_t size = nghttp2_session_mem_send(session_.get(), &bytes);
        if (size < 0) return SetOver();
        if (size == 0) break;
        out_.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
      }
      if (out_.empty()) break;
    }
    const ssize_t put = ::send(socket_.get(), out_.data() + sent_, out_.size() - sent_,
                               MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (put < 0) return SetOver();
    sent_ += static_cast<std::size_t>(put);
  }
  const bool goes_on = nghttp2_session_want_read(session_.get()) != 0 ||
                       nghttp2_session_want_write(session_.get()) != 0;
  if (!over_ && !goes_on) SetOver();
}

bool Http2Connection::Request(Http2Stream& stream, const Headers& headers, bool end) {
  nghttp2_data_provider body = {.source = {.ptr = &stream}, .read_callback = Callbacks::TakeData};
  const std::vector<nghttp2_nv> fields = Fields(headers);
  const std::int32_t id = nghttp2_submit_request(session_.get(), nullptr, fields.data(),
                                                 fields.size(), end ? nullptr : &body, &stream);
  if (id < 0) {
    drained_ = true;  // NGHTTP2_ERR_STREAM_ID_NOT_AVAILABLE: 2^30 calls were made
    return false;
  }
  stream.connection_ = this;
  stream.id_ = id;
  stream.ended_ = end;
  owner_.Changed(*this);
  return true;
}

void Http2Connection::Attach(std::int32_t id, Http2Stream& stream) {
  nghttp2_session_set_stream_user_data(session_.get(), id, &stream);
  stream.connection_ = this;
  stream.id_ = id;
}

void Http2Connection::GoAway() {
  nghttp2_submit_goaway(session_.get(), NGHTTP2_FLAG_NONE,
                        nghttp2_session_get_last_proc_stream_id(session_.get()), NGHTTP2_NO_ERROR,
                        nullptr, 0);
  owner_.Changed(*this);
}

// RFC 9113, 8.1: a server that has answered all before the request's end says so by RST_STREAM with NO_ERROR.
void Http2Connection::EndSent(std::int32_t id) {
  if (side_ != Side::kServer) return;
  if (nghttp2_session_get_stream_remote_close(session_.get(), id) != 0) return;
  nghttp2_submit_rst_stream(session_.get(), NGHTTP2_FLAG_NONE, id, NGHTTP2_NO_ERROR);
}

void Http2Stream::Respond(const Headers& headers, bool end) {
  if (!open() || ended_) return;
  nghttp2_data_provider body = {.source = {.ptr = this},
                                .read_callback = Http2Connection::Callbacks::TakeData};
  const std::vector<nghttp2_nv> fields = Fields(headers);
  nghttp2_submit_response(connection_->session_.get(), id_, fields.data(), fields.size(),
                          end ? nullptr : &body);
  answered_ = true;
  ended_ = end;
  connection_->owner_.Changed(*connection_);
}

void Http2Stream::Send(std::string_view bytes) {
  if (!open() || ended_ || bytes.empty()) return;
  if (taken_ >= kPiece) pending_.erase(0, std::exchange(taken_, 0));
  pending_.append(bytes);
  nghttp2_session_resume_data(connection_->session_.get(), id_);
  connection_->owner_.Changed(*connection_);
}

void Http2Stream::End(Headers trailers) {
  if (!open() || ended_) return;
  ended_ = true;
  trailers_ = std::move(trailers);
  nghttp2_session_resume_data(connection_->session_.get(), id_);
  connection_->owner_.Changed(*connection_);
}

void Http2Stream::Reset(std::uint32_t error) {
  if (!open() || reset_) return;
  ended_ = true;
  reset_ = true;
  nghttp2_submit_rst_stream(connection_->session_.get(), NGHTTP2_FLAG_NONE, id_, error);
  connection_->owner_.Changed(*connection_);
}

void Http2Stream::Consume(std::size_t bytes) {
  if (!open()) return;
  nghttp2_session_consume_stream(connection_->session_.get(), id_, bytes);
  connection_->owner_.Changed(*connection_);
}

}  // namespace stasis::cri
