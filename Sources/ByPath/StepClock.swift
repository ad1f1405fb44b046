// StepClock: a clock that moves on by the same step each time it is read, so that what is done twice is done at the same times.

public import Format
import Memory

public final class StepClock: @unchecked Sendable {
    private let lock = Lock()
    private var nanoseconds: Int64
    private let step: Int64

    /// Nanoseconds. A step of zero where the number of readings, which depends on threads, must not show.
    public init(start: Int64, step: Int64) {
        nanoseconds = start
        self.step = step
    }

    public func next() -> Timestamp {
        lock.withLock {
            nanoseconds += step
            return Timestamp(nanoseconds: nanoseconds)
        }
    }
}
