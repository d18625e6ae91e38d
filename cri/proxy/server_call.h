// One call that is answered here, in the terms of gRPC's completion queue: each operation that is begun ends in
// one event, and the events of all calls come one after the other on one thread.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace stasis::cri {

/// What a completion queue gives back. Nothing in it may block: all other calls would wait.
class Event {
 public:
  virtual void Happened(bool ok) = 0;

 protected:
  ~Event() = default;
};

/// How many calls there are.
class CallCount {
 public:
  void Began();
  void Ended();

  /// True when there is none; false when `deadline` came first.
  bool WaitUntilNone(std::chrono::steady_clock::time_point deadline);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int calls_ = 0;
};

class ServerCall;

/// The client's end of a call, there before the call is.
class ClientEnd : private Event {
 public:
  /// Of the next call that comes to `service`: `arrived` happens then, or with false when the server shuts
  /// down first.
  ClientEnd(grpc::AsyncGenericService& service, grpc::ServerCompletionQueue& queue, Event& arrived);

  grpc::GenericServerContext context;
  grpc::GenericServerAsyncReaderWriter stream{&context};

 private:
  friend class ServerCall;
  void Happened(bool ok) override;

  ServerCall* call_ = nullptr;
};

/// A call that has come. It deletes itself when all that it began is over.
class ServerCall {
 public:
  ServerCall(std::unique_ptr<ClientEnd> client, CallCount& count);
  virtual ~ServerCall() { count_.Ended(); }
  ServerCall(const ServerCall&) = delete;
  ServerCall& operator=(const ServerCall&) = delete;

 protected:
  /// One kind of operation, at most one of it under way. `then` runs with what came of it.
  template <typename Derived, void (Derived::*then)(bool)>
  class Step : private Event {
   public:
    explicit Step(Derived* call) : call_(call) {}

    /// The tag for an operation that is begun with it at once.
    void* Begin() {
      ++call_->under_way_;
      return static_cast<Event*>(this);
    }

   private:
    void Happened(bool ok) override {
      Derived* call = call_;
      (call->*then)(ok);
      call->Over();
    }

    Derived* call_;
  };

  grpc::GenericServerContext& context() { return client_->context; }
  grpc::GenericServerAsyncReaderWriter& client() { return client_->stream; }

  /// The client has gone, has cancelled, or its deadline is over; or the server ends.
  virtual void Cancelled() = 0;

 private:
  friend class ClientEnd;
  void Over();

  std::unique_ptr<ClientEnd> client_;
  CallCount& count_;
  int under_way_ = 1;  // gRPC's word that the call is done
};

}  // namespace stasis::cri
