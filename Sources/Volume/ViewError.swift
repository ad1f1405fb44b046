// ViewError: why a view could not answer.

public import Device
public import Format
public import Tree

public enum ViewError: Error, Sendable {
    /// POSIX says no.
    case refused(OperationError)
    /// A node of the tree is missing from memory, damaged, or cannot be read.
    case tree(TreeError)
    /// A data block is needed in memory and reading is not allowed now (see Tree.mayRead).
    case missingPage(BlockNumber, crc: UInt32, InodeNumber, fileBlock: UInt64)
    /// What is on disk contradicts itself.
    case damaged(String)
    case device(DeviceError)

    /// For whoever asked: refusals as they are, everything else as an I/O error with its reason.
    public var operationError: OperationError {
        switch self {
        case .refused(let error): error
        case .tree(.missing(let reference, _)): .io("tree node at \(reference.address) is not in memory")
        case .tree(.damaged(let error)): .io(error.description)
        case .tree(.device(let error)): .io(error.description)
        case .missingPage(let block, _, let inode, let fileBlock):
            .io("\(block) of inode \(inode), file block \(fileBlock), is not in memory")
        case .damaged(let text): .io(text)
        case .device(let error): .io(error.description)
        }
    }

    public var text: String {
        switch operationError {
        case .io(let text): text
        case let error: "\(error)"
        }
    }
}
