import { inViewScope } from '../api/permissions.ts'
import { recordOf } from '../api/verbs.ts'
import { download } from '../operations/uploads.ts'
import { rowById } from '../state.ts'
import { id, type Module, text } from './module.ts'

/** `content_url` of an attachment leads here (docs/sdp-api.md 19). Files of hidden tickets stay hidden. */
export const attachments: Module = {
  path: 'attachments',
  table: 'attachments',
  root: 'attachment',
  scopes: [
    'requests',
    'problems',
    'changes',
    'releases',
    'projects',
    'solutions',
    'contracts',
    'purchases',
    'assets',
    'general',
  ],
  verbs: [],
  forRequesters: ['get'],
  fields: { id, name: text() },
  isVisible(file, call) {
    if (file.parentTable !== 'requests') return true
    const request = rowById(call.portal, 'requests', file.parent)
    return request !== undefined && inViewScope(request, call)
  },
  operations: {
    'GET _download': call => download(recordOf(call)),
    'GET /download': call => download(recordOf(call)),
  },
}
