import { allowedValues, links, metainfo } from './api/metadata.ts'
import { indexModules } from './api/module-index.ts'
import { announcements } from './modules/announcements.ts'
import { assetModules } from './modules/assets.ts'
import { attachments } from './modules/attachments.ts'
import { changes, releases } from './modules/changes.ts'
import { cmdbModules } from './modules/cmdb.ts'
import { extraModules } from './modules/extras.ts'
import { lookupModules } from './modules/lookups.ts'
import type { Module } from './modules/module.ts'
import { peopleModules } from './modules/people.ts'
import { problems } from './modules/problems.ts'
import { projects } from './modules/projects.ts'
import { purchasingModules } from './modules/purchasing.ts'
import { requests } from './modules/requests.ts'
import { solutionModules } from './modules/solutions.ts'
import { generalTasks } from './modules/tasks.ts'
import { templateModules } from './modules/templates.ts'

/** Every module tells what its fields are and what may be done (docs/sdp-api.md 6). */
function withMetadata(module: Module): Module {
  return {
    ...module,
    collectionOperations: {
      ...module.collectionOperations,
      'GET _metainfo': metainfo,
      'GET _links': links,
      ...(module.offersLookups ? { 'GET _allowed_values_for_fields': allowedValues } : {}),
    },
    operations: {
      ...module.operations,
      'GET _links': links,
      ...(module.offersLookups ? { 'GET _allowed_values_for_fields': allowedValues } : {}),
    },
    children: module.children?.map(withMetadata),
  }
}

/** The table of modules: everything the SDP API of the simulator serves. */
export const modules: readonly Module[] = [
  requests,
  problems,
  changes,
  releases,
  projects,
  generalTasks,
  ...solutionModules,
  ...assetModules,
  ...cmdbModules,
  ...purchasingModules,
  announcements,
  attachments,
  ...extraModules,
  ...peopleModules,
  ...lookupModules,
  ...templateModules,
].map(withMetadata)

indexModules(modules)
