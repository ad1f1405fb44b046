// The one place that maps why an operation was refused to the number that a program sees.

import Glibc
import Volume

extension OperationError {
    var errno: Int32 {
        switch self {
        case .notFound: ENOENT
        case .exists: EEXIST
        case .notDirectory: ENOTDIR
        case .isDirectory: EISDIR
        case .notEmpty: ENOTEMPTY
        case .nameTooLong: ENAMETOOLONG
        case .invalid: EINVAL
        case .notPermitted: EPERM
        case .accessDenied: EACCES
        case .tooLarge: EFBIG
        case .tooManyLinks: EMLINK
        case .noSpace: ENOSPC
        case .readOnly: EROFS
        // Never ENOSYS: the kernel would stop asking for as long as the mount lives.
        case .notSupported: EOPNOTSUPP
        case .noAttribute: ENODATA
        case .rangeTooSmall: ERANGE
        case .argumentTooLong: E2BIG
        case .stale: ESTALE
        case .noSuchOffset: ENXIO
        case .busy: EBUSY
        case .io: EIO
        }
    }
}
