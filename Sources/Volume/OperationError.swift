// OperationError: why an operation was refused. FuseAdapter/Errno.swift is the one place that maps these to errno.

public enum OperationError: Error, Sendable, Equatable {
    case notFound
    case exists
    case notDirectory
    case isDirectory
    case notEmpty
    case nameTooLong
    case invalid
    case notPermitted
    case accessDenied
    case tooLarge
    case tooManyLinks
    case noSpace
    case readOnly
    case notSupported
    case noAttribute
    case rangeTooSmall
    case argumentTooLong
    /// An inode number that no longer means anything.
    case stale
    /// SEEK_DATA or SEEK_HOLE beyond the end.
    case noSuchOffset
    case busy
    /// The device failed, or what it returned does not match its checksum; the text names place and finding.
    case io(String)
}
