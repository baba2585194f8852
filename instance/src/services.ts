import { type Completions, createCompletions } from './completions.ts'
import type { InstanceContext } from './context.ts'
import { createGrants, type Grants } from './grants.ts'
import { type Access, createAccess } from './sdp/access.ts'
import { type Approvals, createApprovals } from './sdp/approvals.ts'
import { createSdpClient, type SdpClient } from './sdp/client.ts'
import { createForms, type Forms } from './sdp/forms.ts'
import { createNames, type Names } from './sdp/names.ts'
import { createPeople, type People } from './sdp/people.ts'
import { createRecords, type Records } from './sdp/records.ts'
import { createRequests, type Requests } from './sdp/requests.ts'
import { createSite, type Site } from './sdp/site.ts'
import { type Confirmations, createConfirmations } from './tools/confirmations.ts'
import { createUndo, type Undo } from './tools/undo.ts'

/** What all sessions of one instance share: the SDP client and everything that is cached. */
export type Services = {
  context: InstanceContext
  grants: Grants
  access: Access
  client: SdpClient
  site: Site
  names: Names
  forms: Forms
  people: People
  records: Records
  requests: Requests
  approvals: Approvals
  confirmations: Confirmations
  undo: Undo
  completions: Completions
}

/** Builds the shared part once per instance. */
export function buildServices(context: InstanceContext): Services {
  const records = createRecords(context)
  const services = {
    context,
    grants: createGrants(context),
    access: createAccess(context),
    client: createSdpClient(context),
    site: createSite(context),
    names: createNames(context),
    forms: createForms(context),
    people: createPeople(context),
    records,
    requests: createRequests(records, context),
    approvals: createApprovals(context),
    confirmations: createConfirmations(context),
    undo: createUndo(context),
  }
  return { ...services, completions: createCompletions(services) }
}
