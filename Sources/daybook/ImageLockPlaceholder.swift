// TODO-MERGE: delete this file when Device brings its ImageLock.

import Device
import Glibc

struct LockError: Error, CustomStringConvertible {
    let description: String
}

struct ImageLock {
    static func acquireWriter(_ device: FileDevice) throws(LockError) -> ImageLock {
        guard flock(device.descriptor, LOCK_EX | LOCK_NB) == 0 else {
            throw LockError(description: "\(device.name) is in use by another daybook process")
        }
        return ImageLock()
    }
}
