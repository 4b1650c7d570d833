// Package conf is what ambi was asked to do, as data: the network
// configuration (one plugin entry of a conflist), the parameters of one
// attachment, the port mappings, and what of results concerns more than
// one room. It does no I/O, so that every room can speak in its types.
//
// [Parse] validates. Keys of ours are strict: an unknown key is CNI error code
// 2, a value out of range is code 7, and both messages name the key, the value
// and what is allowed. Keys of the CNI specification and keys with a "/" in
// their name (such as cni.dev/valid-attachments) are tolerated.
//
// It imports nothing of ours. Start reading at [NetConf] in netconf.go; [Attachment] in
// attachment.go has that and the parameters of one attachment.
package conf
