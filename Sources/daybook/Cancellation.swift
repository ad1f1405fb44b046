// Cancellation: SIGINT and SIGTERM ask a command that takes long to come to an end, instead of ending it.

import Glibc
import Synchronization

/// Whether SIGINT or SIGTERM has come. What takes moments, and half of which would have to be done again, is finished first.
enum Cancellation {
    private static let flag = Atomic<Bool>(false)

    static func install() {
        // The handler must not be the first to touch the flag.
        _ = flag.load(ordering: .relaxed)
        for number in [SIGINT, SIGTERM] {
            var action = sigaction()
            action.__sigaction_handler.sa_handler = { _ in Cancellation.request() }
            sigaction(number, &action, nil)
        }
    }
    private static func request() { flag.store(true, ordering: .relaxed) }
    static var isWanted: Bool { flag.load(ordering: .relaxed) }
}
