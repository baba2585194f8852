/** One entry of `response_status.messages` (docs/sdp-api.md 4.1). */
export interface Message {
  status_code: number
  type: 'failed' | 'warning' | 'success'
  message?: string
  field?: string
  fields?: string[]
}

/** A refusal in SDP's own form. */
export class ApiFailure extends Error {
  readonly httpStatus: number
  readonly messages: Message[]
  readonly headers: Record<string, string>

  constructor(httpStatus: number, messages: Message[], headers: Record<string, string> = {}) {
    super(messages.map(one => one.message ?? one.status_code).join('; '))
    this.httpStatus = httpStatus
    this.messages = messages
    this.headers = headers
  }
}

function failure(httpStatus: number, code: number, rest: Omit<Message, 'status_code' | 'type'>): ApiFailure {
  return new ApiFailure(httpStatus, [{ status_code: code, type: 'failed', ...rest }])
}

/** The table of 4.2 and the observed texts of 4.3, one function each. */
export const fail = {
  extraKey: (field: string) => failure(400, 4001, { field, message: 'EXTRA_KEY_FOUND_IN_JSON' }),
  extraParameter: (field: string) => failure(400, 4001, { field, message: 'EXTRA_PARAM_FOUND' }),
  extraArrayValue: (field: string) => failure(400, 4001, { field, message: 'EXTRA_VALUE_FOUND_IN_JSONARRAY' }),
  unparsableJson: (field: string) => failure(400, 4001, { field, message: `Unable to parse JSON for : ${field}` }),
  unparsableValue: (field: string) =>
    failure(400, 4001, { field, message: `Unable to parse the given data for ${field}` }),
  unknownValue: (field: string, message = `The value given for ${field} does not exist`) =>
    failure(400, 4001, { field, message }),
  wrongType: (field: string) => failure(400, 4021, { field, message: `Data type mismatch for ${field}` }),
  tooLong: (field: string, maxLength: number) =>
    failure(400, 4001, { field, message: `${field} is longer than ${maxLength} characters` }),
  mandatory: (fields: string[]) => failure(400, 4012, { fields }),
  readOnly: (field: string) => failure(400, 4014, { field, message: `${field} is read only` }),
  notEditable: (field: string) => failure(400, 4009, { field, message: `${field} cannot be edited` }),
  notUnique: (field: string) => failure(400, 4008, { field, message: `${field} must be unique` }),
  inUse: (message: string) => failure(400, 4005, { message }),
  timeMismatch: (fields: string[]) => failure(400, 4016, { fields, message: 'Time mismatch' }),
  notAllowed: (message = 'User is not allowed to do this operation') => failure(403, 4002, { message }),
  cannotGive: (field: string) => failure(403, 4002, { field, message: `Cannot give value for ${field}` }),
  invalidUrl: () => failure(404, 4007, { message: 'Invalid URL' }),
  unauthorized: () => failure(401, 4022, { message: 'UNAUTHORISED' }),
  internal: () => failure(500, 4004, { message: 'Internal Error' }),
  refused: (message: string) => failure(400, 4000, { message }),
}
