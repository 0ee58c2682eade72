// Lets a stream of answers hand over some messages before the first of them has left: grpc-js waits for each, which makes of every
// message a write to the socket of its own. What is handed over together leaves together.
import * as grpc from "@grpc/grpc-js";

// Beyond so much the writer waits, as it does without this.
const mostMessages = 16;

/** The interceptor of a server. */
export const writeAhead: grpc.ServerInterceptor = ({ responseStream }, call) =>
  // The cast: grpc-js calls what it is given by the interface that the class implements.
  responseStream ? new WriteAheadCall(call) : (call as grpc.ServerInterceptingCall);

class WriteAheadCall extends grpc.ServerInterceptingCall {
  #leaving = 0;
  #waiting: (() => void) | undefined;

  override sendMessage(message: unknown, callback: () => void): void {
    this.#leaving += 1;
    super.sendMessage(message, () => {
      this.#leaving -= 1;
      const resume = this.#waiting;
      this.#waiting = undefined;
      resume?.();
    });
    if (this.#leaving < mostMessages) callback();
    else this.#waiting = callback;
  }
}
